"""Continuous batching: requests in, tokens out, one step of all slots at a time.

LAW: plain Python. It never imports jax, nor anything that does; what executes its plans is handed
in.
"""
