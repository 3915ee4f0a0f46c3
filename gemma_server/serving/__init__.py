"""A model's life: opened, loaded, ready, draining; what it is called, and what it counts.

LAW: imports weights, engine and executor. jax only within the functions that load.
"""
