"""What all tests share: no settings of the machine's own, `--long`, and which of them wait."""

import os
from pathlib import Path

import pytest

from testing import counts, kept_programs

# Tests must not depend on what the machine's own environment sets for the server.
for _name in list(os.environ):
    if _name.startswith(("GEMMA_", "MODEL_")):
        del os.environ[_name]

# Where slow tests start servers, and wait for them more than they compute; but for these files.
_WAITING = ("clients", "server")
_COMPILING = ("test_checkpoints.py", "test_go_clients.py", "test_swaps.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`, which scripts/test.sh takes too."""
    parser.addoption("--long", action="store_true", help="draw many more cases, and use no cache")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is read, whose decorators ask for their counts, and which imports jax."""
    if config.getoption("long"):
        counts.draw_all()
    else:
        kept_programs.keep_in(config.cache.mkdir("programs"))


@pytest.hookimpl(tryfirst=True)  # before those are chosen that a marker names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark those that mostly wait, so that more of them than there are CPUs run at a time, and put
    the longest files first, so that no CPU is left with one of them at the end."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        waits = folder in _WAITING and item.path.name not in _COMPILING
        if waits and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.server)
    items.sort(key=lambda item: item.path.name not in _COMPILING)
