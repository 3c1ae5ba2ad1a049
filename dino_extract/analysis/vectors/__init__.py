"""The tools of every analysis: stored vectors, labels, neighbours, pairs and clusters of vectors."""
