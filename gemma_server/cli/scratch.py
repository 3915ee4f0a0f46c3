"""Directories that are made aside and renamed into place, so that nobody sees half of one."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`; making it checks that one can write there. SIGTERM
    ends the block with an exception, so that nothing stays behind."""
    with (
        _ended_by_sigterm(),
        tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as scratch,
    ):
        yield Path(scratch)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
