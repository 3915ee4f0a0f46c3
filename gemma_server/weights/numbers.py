"""The numbers in a checkpoint's metadata, each checked for a sensible value."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemma_server.errors import ModelLoadError


class Numbers:
    """Numbers by name. `where` is the file, and the prefix of the names, for the errors.

    Every method but `wrong` raises ModelLoadError for a value that is not valid; the text names it.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self._values, self._where, self._prefix = values, where, prefix

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A count of at least so many; without a default it must be there. Null is not there."""
        value = self._one(name, default)
        value = default if value is None else value
        if type(value) is not int or not least <= value < 2**31:
            raise self.wrong(name)
        return value

    def whole_or_none(self, name: str) -> int | None:
        """A count, maybe 0; None where the file says nothing."""
        return None if self._one(name, None) is None else self.whole(name, least=0)

    def wholes(self, name: str) -> list[int]:
        """Counts of at least 1, one or one for each layer; none where the file says nothing."""
        value = self._values.get(self._prefix + name)
        items = value.tolist() if isinstance(value, np.ndarray) else value
        items = items if isinstance(items, list) else [] if items is None else [items]
        if not all(type(item) is int and 1 <= item < 2**31 for item in items):
            raise self.wrong(name)
        return items

    def real(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.real_or_none(name, default)
        if value is None:
            raise self.wrong(name)
        return value

    def real_or_none(self, name: str, default: float | None, *, zero: bool = False) -> float | None:
        """A positive number, or 0 if that may be, or None, which the file may state."""
        value = self._one(name, default)
        if value is None:
            return None
        if type(value) not in (int, float) or not (0 < value < 1e12 or (zero and value == 0)):
            raise self.wrong(name)
        return float(value)

    def ids(self, name: str) -> frozenset[int]:
        """Token ids: one, several or none."""
        value = self._values.get(self._prefix + name)
        items = value.tolist() if isinstance(value, np.ndarray) else value
        items = items if isinstance(items, list) else [] if items is None else [items]
        if not all(type(item) is int and 0 <= item < 2**31 for item in items):
            raise self.wrong(name, "not a token's id or a list of them")
        return frozenset(items)

    def flags(self, name: str) -> tuple[bool, ...] | None:
        """Whether something holds for each layer; None where the file has no array of this name."""
        value = self._values.get(self._prefix + name)
        if not isinstance(value, list | np.ndarray):
            return None
        if not all(flag in (False, True) for flag in value):  # 0 and 1 too
            raise self.wrong(name, "not one flag for each layer")
        return tuple(map(bool, value))

    def first_of(self, *names: str) -> str:
        """The first of the names that has a value; without one, the first."""
        return next((name for name in names if self._prefix + name in self._values), names[0])

    def _one(self, name: str, default: float | None) -> Any:
        """The value; of an array, which has an item for each layer, the item that all repeat."""
        value = self._values.get(self._prefix + name, default)
        if not isinstance(value, list | np.ndarray):
            return value
        items = set(value.tolist() if isinstance(value, np.ndarray) else map(repr, value))
        if len(items) != 1:
            raise self.wrong(name, "only the same for all layers is supported")
        return value[0].item() if isinstance(value, np.ndarray) else value[0]

    def wrong(self, name: str, why: str = "") -> ModelLoadError:
        """The error for a value that is not valid."""
        shown = repr(self._values.get(self._prefix + name))[:100]
        return ModelLoadError(f"{self._where}: {self._prefix}{name} is {shown}{why and f': {why}'}")
