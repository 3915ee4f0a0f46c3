"""Checkpoint files in, one parameter tree out.

LAW: imports `model.config`, `errors` and itself; the abstract tree is handed in, so the Flax
modules stay the only declaration of what the tree holds.
"""
