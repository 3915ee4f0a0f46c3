"""What a person sees while a model loads."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from gemma_server.console import say
from gemma_server.serving.model import ServedModel

_LOOK_S = 0.1
_LINE_S = 10.0  # between two lines about a stage that takes long


def report_progress(model: ServedModel) -> None:
    """Show on standard error what loading is doing, until it is over.

    A bar on a terminal; elsewhere plain lines for a log.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        _draw_bar(model, console)
    else:
        _print_stages(model)


def _draw_bar(model: ServedModel, console: Console) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(model.stage, total=None, detail="")
        while model.status == "loading":
            progress.update(
                bar,
                description=model.stage,
                detail=model.detail,
                total=None if model.progress is None else 1.0,
                completed=model.progress or 0.0,
            )
            time.sleep(_LOOK_S)


def _print_stages(model: ServedModel) -> None:
    shown, shown_at = "", time.monotonic()
    detail = ""
    while model.status == "loading":
        if model.stage != shown:
            if detail:  # how the last stage ended
                say(detail)
            say(model.stage)
            shown, shown_at, detail = model.stage, time.monotonic(), ""
        elif model.progress is not None and time.monotonic() - shown_at > _LINE_S:
            say(f"{model.stage}, {model.progress:.0%} {model.detail}")
            shown_at = time.monotonic()
        detail = model.detail
        time.sleep(_LOOK_S)
