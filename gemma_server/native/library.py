"""Builds the kernels with the machine's C++ compiler, and makes them known to XLA.

    python -m gemma_server.native.library

builds them beside their source, as installing does.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from jaxlib.version import __version__ as jaxlib_version

from gemma_server.private_directory import DamagedError, PrivateDirectory, seal, unseal

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
SOURCES = tuple(sorted(HERE.glob("*.cc")))
TARGETS = ("gemma_attention", "gemma_masked_product", "gemma_norm", "gemma_product")
# No -march: the kernels choose their instructions at run time.
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
_COMPILE_TIMEOUT_S = 300
_registered = set[str]()  # prefixes; XLA's registry is the process's, and refuses a second entry


class BuildError(Exception):
    """The kernels cannot be built here; the text says why."""


def register(directory: PrivateDirectory) -> bool:
    """Make the kernels known to XLA:CPU, building them in `directory` if that has not been done.

    Returns whether they can be used; if not, the log says why.
    """
    try:
        load(directory)
    except BuildError as error:
        logger.warning("the native kernels cannot be used: %s", error)
        return False
    return True


def load(directory: PrivateDirectory, prefix: str = "") -> None:
    """Register the kernels under names that begin with `prefix`.

    Raises:
        BuildError: they cannot be built or loaded.
    """
    try:
        library = _opened(_built(directory))
    except OSError as error:
        raise BuildError(str(error)) from None
    if prefix in _registered:
        return
    for name in TARGETS:
        target = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(prefix + name, target, platform="cpu")
    _registered.add(prefix)


def build() -> bytes:
    """Compile the kernels; return the library.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    command = [compiler, *_flags(), "-I", jax.ffi.include_dir(), *map(str, SOURCES), "-o"]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "kernels.so"
            run = subprocess.run(
                [*command, str(made)], capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S
            )
            if run.returncode != 0:
                lines = run.stderr.strip().splitlines() or ["no reason given"]
                raise BuildError(f"{compiler} failed: {lines[0][:300]}")
            return made.read_bytes()
    except OSError as error:
        raise BuildError(f"{error.strerror}: {error.filename}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{compiler} did not end within {_COMPILE_TIMEOUT_S} s") from None


def install() -> Path:
    """Build the kernels beside their source, for all who start this copy of the package.

    Raises:
        BuildError: as `build`, or the library cannot be written there.
    """
    path, data = HERE / _file_name(), seal(build())
    try:
        with tempfile.NamedTemporaryFile(dir=HERE, delete=False) as file:
            file.write(data)
        os.chmod(file.name, 0o644)
        return Path(file.name).replace(path)
    except OSError as error:
        raise BuildError(f"{error.strerror}: {error.filename}") from None


def _built(directory: PrivateDirectory) -> bytes:
    """The library that installing left, else the one in `directory`; built there if need be."""
    name = _file_name()
    installed: tuple[Path, Callable[[], bytes]] = HERE, lambda: unseal((HERE / name).read_bytes())
    for where, read in (installed, (directory.path, lambda: directory.read(name))):
        try:
            return read()
        except FileNotFoundError:
            pass
        except DamagedError as error:
            logger.warning("%s cannot be used: %s", where / name, error)
    data = build()
    try:
        directory.write(name, data)
    except OSError as error:
        logger.warning("%s cannot be kept: %s", directory.path / name, error.strerror)
    return data


def _opened(data: bytes) -> ctypes.CDLL:
    """The library, from a file that nobody else can reach: what is run is what was checked."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("kernels"), "wb") as memory:
            memory.write(data)
            memory.flush()
            return ctypes.CDLL(f"/proc/self/fd/{memory.fileno()}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernels.so"
        path.write_bytes(data)
        return ctypes.CDLL(str(path))


def _file_name() -> str:
    """A name with a hash of all that the library depends on, so that no old one is used."""
    sources = (path.read_bytes() for path in sorted(HERE.glob("*.*[ch]")))
    parts = (b"sealed", *sources, jaxlib_version.encode(), " ".join(_flags()).encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"kernels-{digest[:16]}-{os.uname().machine}.so"


def _flags() -> list[str]:
    return [*_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("no C++ compiler found; install one (on Debian: apt-get install g++)")


if __name__ == "__main__":
    try:
        print(install())
    except BuildError as error:
        sys.exit(f"gemma-server: the native kernels were not built: {error}")
