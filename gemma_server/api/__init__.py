"""Requests and answers, over any transport.

LAW: no Flask, no sockets, no jax; models are handed in. A folder for each dialect; what they share
lies beside them.
"""
