"""Frozen parts around the model: pixels to latents and back, prompts to features."""
