"""Native kernels for XLA:CPU, compiled on the machine where they run.

LAW: imports jax; knows nothing of models.
"""
