"""The embedded example: captioned moving digits, their judges and scores."""
