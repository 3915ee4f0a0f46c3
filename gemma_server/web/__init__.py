"""HTTP to engine and back.

LAW: never jax, never the model; models are handed in.
"""
