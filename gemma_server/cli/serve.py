"""`gemma-server serve`."""

import os
import sys
from typing import Any

import click

from gemma_server.cli.options import read_settings, settings_options
from gemma_server.settings import variable_name


@click.command("serve")
@settings_options()
def command(**flags: Any) -> None:
    """Start the server; it prints one line when it is ready, and stops on SIGTERM."""
    settings = read_settings(flags)
    # gunicorn's configuration reads the environment, so that starting gunicorn by hand works too.
    for name, value in flags.items():
        if value is not None:
            os.environ[variable_name(name)] = str(getattr(settings, name))
    sys.argv = [
        "gemma-server",
        "--config=python:gemma_server.server.gunicorn_conf",
        "gemma_server.server.worker:create_app()",
    ]
    from gunicorn.app.wsgiapp import WSGIApplication

    class Gunicorn(WSGIApplication):  # type: ignore[misc]  # gunicorn is untyped
        """Imports nothing from the working directory, where a queue.py may lie about."""

        def chdir(self) -> None:
            """Nothing: gunicorn would put the directory in front of sys.path."""

    Gunicorn("gemma-server").run()
