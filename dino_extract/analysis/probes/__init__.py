"""How well labels can be read from stored vectors: nearest neighbours and linear probes."""
