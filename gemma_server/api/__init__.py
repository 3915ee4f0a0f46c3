"""What clients ask for and what they are told, whatever carries it.

LAW: no Flask, no sockets, no jax; models are handed in. A folder for each dialect; what they share
lies beside them.
"""
