"""The Gemma transformer as pure functions and modules over arrays.

LAW: imports jax, flax and itself only (`config` not even those).

The key of every shape in this project:

    B  rows of a step (one per slot at work)     D  model width
    T  new tokens per row                        N  query heads
    S  cache length                              K  key-value heads, G = N / K
    V  vocabulary                                H  head width
    F  feed-forward width                        L  layers
"""
