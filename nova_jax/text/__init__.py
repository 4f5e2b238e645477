"""Prompts to features."""
