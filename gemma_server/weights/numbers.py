"""The numbers in a checkpoint's metadata, each checked for a sensible value."""

from collections.abc import Mapping
from typing import Any

from gemma_server.errors import ModelLoadError


class Numbers:
    """Numbers by name. `where` is the file, and the prefix of the names, for the errors.

    Every method but `wrong` raises ModelLoadError for a value that is not valid; the text names it.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._values, self._where, self._prefix = values, where, prefix

    def whole(self, name: str, default: int | None = None) -> int:
        """A count of at least 1; without a default it must be there."""
        value = self._values.get(self._prefix + name, default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.wrong(name)
        return value

    def real(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.real_or_none(name, default)
        if value is None:
            raise self.wrong(name)
        return value

    def real_or_none(self, name: str, default: float | None) -> float | None:
        """A positive number or None, both of which the file may state."""
        value = self._values.get(self._prefix + name, default)
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise self.wrong(name)
        return float(value)

    def wrong(self, name: str, why: str = "") -> ModelLoadError:
        """The error for a value that is not valid."""
        shown = repr(self._values.get(self._prefix + name))[:100]
        return ModelLoadError(f"{self._where}: {self._prefix}{name} is {shown}{why and f': {why}'}")
