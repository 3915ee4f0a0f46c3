"""gemma-server: a sidecar that serves a Gemma model over plain HTTP.

Importing this package is cheap and touches no accelerator: jax is imported only by `model`, by
`engine.runner` and by the functions of `build` that need them.
"""

__version__ = "0.1.0"
