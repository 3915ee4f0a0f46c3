"""gemma-server: a sidecar that serves a Gemma model over plain HTTP.

Importing this package is cheap and touches no accelerator. Each folder has a law, in its own
docstring; tests/test_imports.py holds the order in which they may import each other.
"""

__version__ = "0.1.0"
