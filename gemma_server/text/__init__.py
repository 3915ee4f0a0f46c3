"""Text to token ids and back.

LAW: bytes, strings and ids; no jax, no flask.
"""
