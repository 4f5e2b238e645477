"""Scores of generated digit videos by judges that have nothing to do with the model."""
