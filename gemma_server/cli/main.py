"""The command line: a module of this folder for each command."""

import importlib

import click

from gemma_server import __version__

COMMANDS = (
    *("serve", "generate", "bench", "inspect", "convert"),
    *("publish", "models", "load", "unload"),
)


class Commands(click.Group):
    """Imports a command's module only when it is asked for: `serve` needs none of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, if there is one."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gemma_server.cli.{cmd_name}")
        command: click.Command = module.command
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gemma-server")
def main() -> None:
    """Serve a Gemma model to any program over HTTP."""


if __name__ == "__main__":
    main()
