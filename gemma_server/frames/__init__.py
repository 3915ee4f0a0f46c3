"""Length-prefixed frames on a Unix socket (docs/frames.md).

LAW: imports the api, never the web; no jax. A `Service` says what the frames mean.
"""
