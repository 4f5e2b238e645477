"""Saved models and training runs."""
