"""Compiled programs kept on disk, so that a warm start neither traces nor compiles.

jax's own cache saves the compilation, but a program has to be traced and lowered before it can be
looked up there. That takes twice as long as reading the program.
"""

import hashlib
import logging
import os
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import flax
import jax
import jax.monitoring
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jaxlib.version import __version__ as jaxlib_version

import gemma_server
from gemma_server.executor import cpu
from gemma_server.private_directory import DamagedError, PrivateDirectory

logger = logging.getLogger(__name__)

_OURS = re.compile(r"scratch|.*-[0-9a-f]{32}$")  # nothing else is removed, whatever lies there
KEPT = 16  # configurations: the most recently used
_PACKAGE = Path(gemma_server.__file__).parent
_ROOMS = ("model", "native", "engine", "executor")  # what programs are made of, and `errors`
# What this process has: versions of a model that are alike share their programs.
_in_use: WeakValueDictionary[Path, Any] = WeakValueDictionary()


class CompileCache:
    """The programs of one configuration, each in a file of `directory`: reading it can run code.

    `configuration` holds all that the programs depend on, except this package's code, its libraries
    and the machine.
    """

    def __init__(self, directory: PrivateDirectory, configuration: str) -> None:
        self._directory = directory
        code = (path.read_bytes() for path in sources())
        parts = [configuration.encode(), *code, *map(str.encode, _machine())]
        self._key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]

    def get(self, name: str, compile_it: Callable[[], Any]) -> Any:
        """The program of this name: one that is in use, else from its file if that is there, else
        compiled and kept."""
        path = self._directory.path / f"{name}-{self._key}"
        program = _in_use.get(path)
        if program is None:
            program = _in_use[path] = self._read(path.name, compile_it)
        return program

    def note(self, name: str, number: int) -> None:
        """Keep a number that is known once the programs are."""
        if self.noted(name) != number:
            self._keep(f"{name}-{self._key}", str(number).encode())

    def noted(self, name: str) -> int | None:
        """The number that was kept under this name, by this process or an earlier one."""
        try:
            return int(self._directory.read(f"{name}-{self._key}"))
        except (OSError, DamagedError, ValueError):
            return None

    def _read(self, file: str, compile_it: Callable[[], Any]) -> Any:
        try:
            kept, operands, results = pickle.loads(self._directory.read(file))
            program = deserialize_and_load(kept, operands, results, execution_devices=[_device()])
            self._directory.touch(file)  # so that what is in use is not pruned
            return program
        except FileNotFoundError:
            pass
        except Exception as error:  # another library's file can raise anything; it is replaced
            path = self._directory.path / file
            logger.warning("%s cannot be used, compiling anew: %s", path, error)
        hits = _jax_cache_hits()
        program = compile_it()
        # On a CPU a program that jax has read in its own cache lacks its functions when it is
        # serialized again; but it is kept there.
        if _jax_cache_hits() == hits:
            self._keep(file, pickle.dumps(serialize(program)))
        return program

    def _keep(self, file: str, data: bytes) -> None:
        """If the disk is full, the next start compiles again."""
        try:
            self._directory.write(file, data)
            self._prune()
        except OSError as error:
            logger.warning("%s cannot be kept: %s", self._directory.path / file, error.strerror)

    def _prune(self) -> None:
        """Remove all but the most recently used configurations, and the temporary files of starts
        that were interrupted."""
        used: dict[str, float] = {}
        files = {name: at for name, at in self._directory.used().items() if _OURS.match(name)}
        for file, moment in files.items():
            key = file.rpartition("-")[2]
            used[key] = max(moment, used.get(key, 0.0))
        last = sorted(used, key=lambda key: used[key])[-KEPT:]
        for file in files:
            if file.rpartition("-")[2] not in last:
                self._directory.remove(file)


def sources() -> list[Path]:
    """The files of this package that decide what a program computes."""
    found = [
        path
        for room in _ROOMS
        for path in (_PACKAGE / room).iterdir()
        if path.suffix in (".py", ".cc", ".h")
    ]
    return sorted([*found, _PACKAGE / "errors.py", _PACKAGE / "private_directory.py"])


_hits = threading.local()


def _jax_cache_hits() -> int:
    """Programs that jax has read in its own cache for this thread."""
    return getattr(_hits, "count", 0)


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _hits.count = _jax_cache_hits() + 1


jax.monitoring.register_event_listener(_on_event)


def _device() -> jax.Device:
    """The device that programs run on."""
    return jax.devices()[0]


def _machine() -> list[str]:
    """What compilation depends on: libraries, flags, devices and CPUs."""
    device = _device()
    return [
        jax.__version__,
        jaxlib_version,
        flax.__version__,
        os.environ.get("XLA_FLAGS", ""),
        device.platform,
        device.device_kind,
        str(jax.device_count()),
        *cpu.description(),
    ]
