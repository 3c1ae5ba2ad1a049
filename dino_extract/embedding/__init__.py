"""From images to embeddings: the recipe, the job, the pipeline, and the encoder for images in memory."""
