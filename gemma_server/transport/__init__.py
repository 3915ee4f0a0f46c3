"""What is not HTTP: length-prefixed frames on a Unix socket (docs/frames.md).

LAW: as web: never jax, never the model. A `Service` says what the frames mean.
"""
