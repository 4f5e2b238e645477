"""Training: optimizer, state, step, evaluation and the loop around them."""
