"""`gemma-server unload`."""

from urllib.parse import quote

import click

from gemma_server.cli.remote import Remote, with_server


@click.command("unload")
@click.argument("model")
@with_server
def command(server: Remote, model: str) -> None:
    """Let MODEL leave the memory of a running server; it is loaded again when it is asked for."""
    server.ask("POST", f"/v2/repository/models/{quote(model)}/unload")
    click.echo(f"{model} leaves memory")
