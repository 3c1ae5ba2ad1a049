"""What every analysis needs: stored vectors, labels, neighbours, pairs and clusters of vectors."""
