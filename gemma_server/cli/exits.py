"""How a command that cannot go on ends."""

import sys
from typing import NoReturn

import click

USAGE, LOAD, FAILED = 2, 3, 1


def fail(message: str, code: int) -> NoReturn:
    """Say why on standard error, and end with an exit code."""
    click.echo(f"gemma-server: {message}", err=True)
    sys.exit(code)
