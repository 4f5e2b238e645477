"""Evaluation suites: their prompts become files as their scorers take them, and scores a table."""
