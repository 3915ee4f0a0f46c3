"""What clients ask for and what they are told, whatever carries it: schemas, jobs, answers, errors.

LAW: neither HTTP nor sockets; never jax, never the model; models are handed in.
"""
