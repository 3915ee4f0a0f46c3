"""Progress of work that is counted in bytes, for a person."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from gemma_server.console import say
from gemma_server.serving.model import byte_rate

_LINE_S = 10.0  # between two lines about a stage that takes long


class ByteProgress:
    """Shows work that is counted in bytes on standard error; call it with done and total.

    A bar on a terminal; elsewhere a plain line now and then.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._stage = ""
        self._began = self._shown_at = time.monotonic()

    def __enter__(self) -> "ByteProgress":
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def at(self, what: str) -> None:
        """Say what is being done now."""
        self._stage, self._began = what, time.monotonic()
        self._bar.update(self._task, description=what)
        if self._bar.disable:
            say(what)

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if self._bar.disable and now - self._shown_at > _LINE_S:
            self._shown_at = now
            say(f"{self._stage}, {byte_rate(done, total, now - self._began)}")
