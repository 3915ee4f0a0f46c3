"""What all tests share."""

import os

# Tests must not depend on what the machine's own environment sets for the server.
for _name in list(os.environ):
    if _name.startswith(("GEMMA_", "MODEL_")):
        del os.environ[_name]
