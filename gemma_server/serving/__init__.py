"""A model's life: opened, loaded, ready, draining; its name, and its metrics.

LAW: imports weights, engine and executor. jax only within the functions that load.
"""
