"""What people do with embeddings: stored vectors in, numbers, tables or pictures out; no model."""
