"""The loop over diffusion steps: one operation, several implementations."""
