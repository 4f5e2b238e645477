"""This implementation against numbers of the PyTorch release."""
