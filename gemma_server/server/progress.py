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
from gemma_server.serving.version import ServableVersion

_LOOK_S = 0.1
_LINE_S = 10.0  # between two lines about a stage that takes long


def report_progress(version: ServableVersion) -> None:
    """Show on standard error what loading is doing, until it is over.

    A bar on a terminal; elsewhere plain lines for a log.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        _draw_bar(version, console)
    else:
        _print_stages(version)


def _draw_bar(version: ServableVersion, console: Console) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(version.stage, total=None, detail="")
        while version.is_coming:
            progress.update(
                bar,
                description=version.stage,
                detail=version.detail,
                total=None if version.progress is None else 1.0,
                completed=version.progress or 0.0,
            )
            time.sleep(_LOOK_S)


def _print_stages(version: ServableVersion) -> None:
    shown, shown_at = "", time.monotonic()
    detail = ""
    while version.is_coming:
        if version.stage != shown:
            if detail:  # how the last stage ended
                say(detail)
            say(version.stage)
            shown, shown_at, detail = version.stage, time.monotonic(), ""
        elif version.progress is not None and time.monotonic() - shown_at > _LINE_S:
            say(f"{version.stage}, {version.progress:.0%} {version.detail}")
            shown_at = time.monotonic()
        detail = version.detail
        time.sleep(_LOOK_S)
