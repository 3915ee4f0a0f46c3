"""Options that commands share: the settings, and where a tokenizer is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from pydantic.fields import FieldInfo

from gemma_server.cli import exits
from gemma_server.errors import UsageError
from gemma_server.settings import (
    Settings,
    default_cache_dir,
    flag_name,
    load_settings,
    variable_name,
)

# Settings without a use in a command that loads a model but starts no server.
NOT_WITHOUT_SERVER = (
    *("host", "port", "uds", "frames", "max_queue", "max_queue_tokens", "api_key_file"),
    *("slots", "max_steps", "drain_timeout", "stop_with_stdin", "model_name"),
    *("model_base_path", "model_config_file", "model_poll_seconds"),
)


def settings_options(*, without: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """One option per setting, from the settings' own names, types and descriptions."""

    def decorate(command: Any) -> Any:
        for name, field in reversed(Settings.model_fields.items()):
            if name not in without:
                command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[Any], Any]:
    default = default_cache_dir() if name == "cache_dir" else field.default
    note = "" if default is None or default is False else f" (default {default})"
    text = f"{field.description}{note} [env {variable_name(name)}]"
    if field.annotation is bool:
        return click.option(flag_name(name), name, is_flag=True, default=None, help=text)
    choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
    kind = click.Choice(choices) if choices else None
    return click.option(flag_name(name), name, type=kind, default=None, help=text)


class Number(click.FloatRange):
    """A number within a range; click lets NaN through every range."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


tokenizer_option = click.option(
    "--model-tokenizer",
    "tokenizer",
    type=click.Path(path_type=Path),
    envvar="MODEL_TOKENIZER",
    help="its tokenizer.model or tokenizer.json, where it brings none [env MODEL_TOKENIZER]",
)


def read_settings(flags: dict[str, Any]) -> Settings:
    """The settings of a command; a setting that cannot work ends the command."""
    try:
        settings = load_settings(**flags)
        settings.api_keys()
    except UsageError as error:
        exits.fail(str(error), exits.USAGE)
    return settings
