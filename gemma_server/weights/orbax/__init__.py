"""Orbax directories: their arrays, and the Gemma in them."""
