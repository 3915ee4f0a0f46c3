"""Continuous batching: requests in, tokens out, one step of all slots at a time.

LAW: all but `runner` and its `operands` are plain Python and never import jax; the runner is the
only place that compiles; only the engine's thread touches the runner.
"""
