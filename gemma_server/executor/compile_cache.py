"""Compiled programs kept on disk, so that a warm start neither traces nor compiles.

jax's own cache spares the compiling, but a program has to be traced and lowered before it can be
looked up there, which takes twice as long as reading it.
"""

import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jaxlib.version import __version__ as jaxlib_version

import gemma_server

logger = logging.getLogger(__name__)

_SOURCES = Path(gemma_server.__file__).parent
_ROOMS = ("model", "engine", "executor")


class Executables:
    """The programs of one configuration, each in a file of `directory`.

    Reading one runs what is in it: the directory must be its user's alone. `configuration` tells
    all that the programs depend on beside this package's code, jax, and the machine.
    """

    def __init__(self, directory: Path, configuration: str) -> None:
        self._directory = directory
        parts = [configuration.encode(), *_code(), *_machine()]
        self._key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]

    def get(self, name: str, compile_it: Callable[[], Any]) -> Any:
        """The program of this name: from its file if it is there, else compiled and kept."""
        path = self._directory / f"{name}-{self._key}"
        try:
            return deserialize_and_load(*pickle.loads(path.read_bytes()))
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a damaged file leads to: it will be replaced
            logger.warning("%s cannot be used, compiling anew: %s", path, error)
        program = compile_it()
        self._keep(path, pickle.dumps(serialize(program)))
        return program

    def _keep(self, path: Path, data: bytes) -> None:
        """Whole or not at all. Without space on the disk, the next start compiles again."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                file.write(data)
            os.replace(file.name, path)
        except OSError as error:
            logger.warning("%s cannot be kept: %s", path, error.strerror)


def _code() -> list[bytes]:
    sources = [
        *_SOURCES.glob("model/*.py"),
        *_SOURCES.glob("engine/*.py"),
        *_SOURCES.glob("executor/*.py"),
    ]
    return [path.read_bytes() for path in sorted(sources)]


def _machine() -> list[bytes]:
    """What XLA compiles for: its own version and flags, the device, the CPU and its threads."""
    device = jax.devices()[0]
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    features = sorted({line for line in cpuinfo.splitlines() if line.startswith(("flags", "Feat"))})
    named = (
        jax.__version__,
        jaxlib_version,
        os.environ.get("XLA_FLAGS", ""),
        device.platform,
        device.device_kind,
        _cpus(),
        *features,
    )
    return [name.encode() for name in named]


def _cpus() -> str:
    """Those that this process may use, where the system tells: XLA divides work among them."""
    if hasattr(os, "sched_getaffinity"):
        return str(len(os.sched_getaffinity(0)))
    return str(os.cpu_count())
