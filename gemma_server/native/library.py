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
from pathlib import Path

import jax
from jaxlib.version import __version__ as jaxlib_version

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
SOURCES = tuple(sorted(HERE.glob("*.cc")))
TARGETS = ("gemma_attention", "gemma_norm", "gemma_product")
# No -march: the kernels choose their instructions at run time.
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
_COMPILE_TIMEOUT_S = 300
_registered = set[str]()  # prefixes; XLA's registry is the process's, and refuses a second entry


class BuildError(Exception):
    """The kernels cannot be built here; the text says why."""


def register(cache_dir: Path) -> bool:
    """Make the kernels known to XLA:CPU, building them in `cache_dir` if that has not been done.

    Returns whether they can be used; if not, the log says why.
    """
    try:
        load(cache_dir)
    except BuildError as error:
        logger.warning("the native kernels cannot be used: %s", error)
        return False
    return True


def load(cache_dir: Path, prefix: str = "") -> None:
    """Register the kernels under names that begin with `prefix`.

    Raises:
        BuildError: they cannot be built or loaded.
    """
    try:
        library = ctypes.CDLL(str(_built(cache_dir)))
    except OSError as error:
        raise BuildError(str(error)) from None
    if prefix in _registered:
        return
    for name in TARGETS:
        target = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(prefix + name, target, platform="cpu")
    _registered.add(prefix)


def build(directory: Path) -> Path:
    """Compile the kernels into `directory`, atomically, and return the library's path.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    target = directory / _file_name()
    command = [compiler, *_flags(), "-I", jax.ffi.include_dir(), *map(str, SOURCES), "-o"]
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = Path(scratch) / target.name
            run = subprocess.run(
                [*command, str(made)], capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S
            )
            if run.returncode != 0:
                lines = run.stderr.strip().splitlines() or ["no reason given"]
                raise BuildError(f"{compiler} failed: {lines[0][:300]}")
            made.replace(target)
    except OSError as error:
        raise BuildError(f"{error.strerror}: {error.filename}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{compiler} did not end within {_COMPILE_TIMEOUT_S} s") from None
    return target


def _built(cache_dir: Path) -> Path:
    """The library beside its source, as installing left it, else the one in `cache_dir`."""
    for directory in (HERE, cache_dir):
        if (path := directory / _file_name()).is_file():
            return path
    return build(cache_dir)


def _file_name() -> str:
    """A name with a hash of all that the library depends on, so that no old one is used."""
    sources = (path.read_bytes() for path in sorted(HERE.glob("*.*[ch]")))
    parts = (*sources, jaxlib_version.encode(), " ".join(_flags()).encode())
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
        print(build(HERE))
    except BuildError as error:
        sys.exit(f"gemma-server: the native kernels were not built: {error}")
