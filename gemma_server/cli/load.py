"""`gemma-server load`."""

from urllib.parse import quote

import click

from gemma_server.cli.remote import Remote, with_server


@click.command("load")
@click.argument("model")
@with_server
def command(server: Remote, model: str) -> None:
    """Load MODEL into the memory of a running server, and wait until it answers."""
    server.ask("POST", f"/v2/repository/models/{quote(model)}/load")
    click.echo(f"{model} takes requests")
