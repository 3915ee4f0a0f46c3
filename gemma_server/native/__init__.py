"""Machine code of our own for XLA:CPU, compiled where it is installed.

LAW: imports jax; knows nothing of models.
"""
