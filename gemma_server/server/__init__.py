"""The process: gunicorn's configuration, the worker and what it hosts, the signals, the addresses.

LAW: everything but the command line lies above it. The gunicorn master imports it, so no jax.
"""
