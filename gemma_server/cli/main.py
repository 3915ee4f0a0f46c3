"""The command line: `gemma-server serve`, `generate`, `bench`, `inspect` and `convert`."""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click
from pydantic.fields import FieldInfo

from gemma_server import __version__
from gemma_server.errors import GemmaServerError, ModelLoadError, UsageError
from gemma_server.settings import (
    Settings,
    default_cache_dir,
    flag_name,
    load_settings,
    variable_name,
)

if TYPE_CHECKING:
    from gemma_server.serving.checkpoint import Checkpoint
    from gemma_server.serving.loader import Wrap
    from gemma_server.serving.model import ServedModel
    from gemma_server.text.tokenizer import Tokenizer

EXIT_USAGE, EXIT_LOAD = 2, 3
_ONLY_SERVE = ("host", "port", "uds", "frames", "max_queue", "max_queue_tokens", "api_key_file")
_NOT_BY_HAND = (
    *_ONLY_SERVE,
    "slots",
    "max_steps",
    "drain_timeout",
    "stop_with_stdin",
    "model_name",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gemma-server")
def main() -> None:
    """Serve a Gemma model to any program over HTTP."""


def _settings_options(*, without: tuple[str, ...] = ()) -> Callable[[Any], Any]:
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


@main.command()
@_settings_options()
def serve(**flags: Any) -> None:
    """Start the server; it prints one line when it is ready, and stops on SIGTERM."""
    settings = _settings(flags)
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


class _Number(click.FloatRange):
    """A number within a range; click lets NaN through every range."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


@main.command()
@click.argument("prompt")
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="most tokens to generate",
)
@click.option(
    "--temperature", type=_Number(0, 100), default=0.0, show_default=True, help="0 is greedy"
)
@click.option(
    "--top-k",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    help="sample among so many tokens; 0 is off",
)
@click.option(
    "--top-p",
    type=_Number(0, 1, min_open=True),
    default=1.0,
    help="sample within this much probability; 1 is off",
)
@click.option(
    "--min-p",
    type=_Number(0, 1),
    default=0.0,
    help="drop tokens below this share of the best; 0 is off",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=None,
    help="the same seed gives the same text",
)
@click.option("--chat", is_flag=True, help="ask an instruction-tuned model, in its own template")
@click.option("--system", default=None, help="what the model shall be told first; implies --chat")
@_settings_options(without=_NOT_BY_HAND)
def generate(
    prompt: str,
    steps: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    chat: bool,
    system: str | None,
    **flags: Any,
) -> None:
    """Load the model, continue PROMPT or answer it (--chat) on standard output, and end."""
    # With as many slots as the server has: then its compiled programs serve here too.
    settings = _settings(flags)
    from gemma_server.api.generation import Generation
    from gemma_server.engine.request import Request, SamplingOptions, random_seed
    from gemma_server.serving.model import ServedModel

    sampling = SamplingOptions(
        temperature, top_k, top_p, min_p, random_seed() if seed is None else seed
    )
    model = ServedModel("gemma")
    _load(settings, model)
    loaded = model.require_ready()
    try:
        ids = _encode(loaded.tokenizer, prompt, chat, system)
        request = Request(ids, steps, sampling, loaded.tokenizer.stop_ids)
        [handle] = loaded.engine.submit([request])
        generation = Generation(loaded.engine, loaded.tokenizer, handle)
        for piece in generation.pieces():
            click.echo(piece.text, nl=False)
    except GemmaServerError as error:
        _fail(str(error), 1)
    click.echo()
    loaded.engine.stop()


@main.command()
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="how often to measure everything",
)
@_settings_options(without=(*_NOT_BY_HAND, "fake"))
def bench(rounds: int, **flags: Any) -> None:
    """Load the model with 16 slots, measure how fast it generates here, and end.

    Tables, then one line of JSON on standard output. On an otherwise idle machine only.
    """
    from gemma_server.bench import SLOTS, Bench, format_report
    from gemma_server.engine.step_log import StepLog
    from gemma_server.serving.model import ServedModel

    settings = _settings(flags | {"slots": SLOTS})
    if settings.fake:
        _fail("bench measures a model: unset GEMMA_FAKE", EXIT_USAGE)
    log, model = StepLog(), ServedModel("gemma")
    _load(settings, model, log.around)
    loaded = model.require_ready()
    try:
        measuring = Bench(loaded, log)
        measuring.run(rounds, lambda what: click.echo(f"gemma-server: {what}", err=True))
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    except GemmaServerError as error:
        _fail(str(error), 1)
    loaded.engine.stop()
    report = measuring.report()
    click.echo(format_report(report))
    click.echo(json.dumps(report))


_tokenizer_option = click.option(
    "--model-tokenizer",
    "tokenizer",
    type=click.Path(path_type=Path),
    envvar="MODEL_TOKENIZER",
    help="its tokenizer.model or tokenizer.json, where it brings none [env MODEL_TOKENIZER]",
)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@_tokenizer_option
def inspect(path: Path, tokenizer: Path | None) -> None:
    """Say what the checkpoint at PATH is and needs, without loading it."""
    from gemma_server.inspection import describe

    click.echo(describe(_open(path, tokenizer)))


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto loses nothing: bfloat16 if all of SOURCE is, else float32",
)
@_tokenizer_option
def convert(source: Path, target: Path, dtype: str, tokenizer: Path | None) -> None:
    """Write the checkpoint SOURCE as the new directory TARGET, which starts fastest."""
    from gemma_server.conversion import convert, lossless_dtype
    from gemma_server.server.progress import ByteProgress

    checkpoint = _open(source, tokenizer)
    dtype = lossless_dtype(checkpoint) if dtype == "auto" else dtype
    try:
        with ByteProgress() as progress:
            convert(checkpoint, target, dtype, progress, progress.at)
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    except ModelLoadError as error:
        _fail(f"cannot convert: {error}", EXIT_LOAD)
    click.echo(f"wrote {target}; serve it with MODEL_CHECKPOINT={target.resolve()}")


def _open(path: Path, tokenizer: Path | None) -> "Checkpoint":
    from gemma_server.serving.checkpoint import open_checkpoint

    try:
        return open_checkpoint(path, tokenizer)
    except ModelLoadError as error:
        _fail(str(error), EXIT_LOAD)


def _encode(tokenizer: "Tokenizer", prompt: str, chat: bool, system: str | None) -> tuple[int, ...]:
    from gemma_server.text.chat import Message, encode_chat

    if not chat and system is None:
        return tuple(tokenizer.encode(prompt))
    told = [] if system is None else [Message("system", system)]
    return tuple(encode_chat(tokenizer, [*told, Message("user", prompt)]))


def _load(settings: Settings, model: "ServedModel", wrap: "Wrap" = lambda runner: runner) -> None:
    """Load in this thread while another shows how far it is."""
    import threading

    from gemma_server.server.progress import report_progress
    from gemma_server.serving.loader import load_model

    reporter = threading.Thread(target=report_progress, args=(model,), daemon=True)
    reporter.start()
    try:
        try:
            load_model(settings, model, traceback.print_exception, wrap)
        finally:
            if model.status == "loading":
                model.drain()  # it has failed: there is nothing more to report
            reporter.join()
    except ModelLoadError as error:
        _fail(f"cannot load the model: {error}", EXIT_LOAD)
    except Exception as error:
        traceback.print_exc()
        _fail(f"cannot load the model: {type(error).__name__}: {error}", EXIT_LOAD)


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        settings = load_settings(**flags)
        settings.api_keys()
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    return settings


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"gemma-server: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
