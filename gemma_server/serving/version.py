"""One version of a model, from being wanted to its end, in TensorFlow Serving's words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from gemma_server.serving.model import LoadedModel, OpenedModel


class State(Enum):
    """What a version goes through, always forward."""

    START = "START"  # it is wanted
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"  # it takes requests
    UNLOADING = "UNLOADING"  # its requests come to their ends
    END = "END"  # unloaded, or failed: then it has an error


@dataclass(eq=False)
class ServableVersion:
    """Its state changes in `Models` alone, under one lock; how far loading is, the loader says."""

    name: str
    number: int = 1
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # settings of its model's own
    signature: str = ""  # of its files: when they change, a version that failed is tried again
    state: State = State.START
    error: str = ""
    bytes: int = 0  # of memory that it needs, as far as that is known
    opened: OpenedModel | None = None  # its files, before it is loaded
    loaded: LoadedModel | None = None
    leases: int = 0
    failures: int = 0  # of loading, one after the other
    retry_at: float | None = None  # on the manager's clock
    stage: str = "starting"
    progress: float | None = None  # share of the stage that is done, when known
    detail: str = ""  # bytes done, bytes in total, and the rate

    def at(self, stage: str, progress: float | None = None, detail: str = "") -> None:
        """Say what loading is doing now."""
        self.stage, self.progress, self.detail = stage, progress, detail

    def again(self) -> "ServableVersion":
        """The same version anew, after so many failures."""
        same = ServableVersion(self.name, self.number, self.path, self.options, self.signature)
        same.failures = self.failures
        return same

    @property
    def is_coming(self) -> bool:
        """It has not loaded yet."""
        return self.state in (State.START, State.LOADING)

    @property
    def has_failed(self) -> bool:
        """It has failed for good: it is not tried again with these files."""
        return bool(self.error) and self.retry_at is None

    @property
    def booked_bytes(self) -> int:
        """Of memory, from the start of loading to the end of unloading."""
        return 0 if self.state in (State.START, State.END) else self.bytes

    @property
    def public_name(self) -> str:
        """The name to ask for it by: that of its checkpoint, if it was given no other."""
        return self.name if self.loaded is None else self.loaded.name

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"
