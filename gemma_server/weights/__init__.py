"""Checkpoint files in, one parameter tree out.

LAW: imports `model.config`, `errors` and itself. The abstract tree that is filled is handed in: the
Flax modules declare it. What a file must hold is checked before, against `GemmaConfig.leaf_shapes`,
which a test keeps equal to that declaration.
"""
