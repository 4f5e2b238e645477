"""Prompts in other words, written by a language model or given in a file."""
