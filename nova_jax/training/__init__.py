"""Training: optimizer, state, step, validation and the loop around them."""
