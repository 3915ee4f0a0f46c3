"""What a person sees while the server starts: progress, then the ready line."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gemma_server.served import LoadedModel, ServedModel
from gemma_server.settings import Settings

_LOOK_S = 0.1


def report_progress(model: ServedModel) -> None:
    """Show on standard error what loading is doing, until it is over.

    A bar on a terminal; elsewhere one plain line a stage, fit for a log.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        _draw_bar(model, console)
    else:
        _print_stages(model)


def announce(settings: Settings, loaded: LoadedModel, sockets: Sequence[Any]) -> None:
    """Print the ready line on standard output, and a command to try on standard error."""
    facts = f"{loaded.name}, {loaded.device}, {loaded.load_s:.1f} s"
    where, curl = _address(settings, sockets)
    print(f"gemma-server ready: {where} ({facts})", flush=True)
    body = '{"prompt": "The capital of France is", "sampling_steps": 16}'
    print(f"try it: curl {curl} --json '{body}'", file=sys.stderr, flush=True)


def _address(settings: Settings, sockets: Sequence[Any]) -> tuple[str, str]:
    """The base URL, and what curl needs to reach /prompt there."""
    if settings.uds is not None:
        return f"unix:{settings.uds}", f"--unix-socket {settings.uds} http://localhost/prompt"
    port = sockets[0].getsockname()[1]  # --port 0 lets the system choose
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if settings.api_key_file else ""
    return url, f"{url}/prompt{key}"


def _draw_bar(model: ServedModel, console: Console) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(model.stage, total=None)
        while model.status == "loading":
            progress.update(
                bar,
                description=model.stage,
                total=None if model.progress is None else 1.0,
                completed=model.progress or 0.0,
            )
            time.sleep(_LOOK_S)


def _print_stages(model: ServedModel) -> None:
    shown = ""
    while model.status == "loading":
        if model.stage != shown:
            shown = model.stage
            print(f"gemma-server: {shown}", file=sys.stderr, flush=True)
        time.sleep(_LOOK_S)
