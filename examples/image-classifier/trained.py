"""A trained network, as a directory.

`config.json` has the classes' names and the network's sizes, `parameters` is written by Orbax, and
`checksums.txt` covers all files of both, in the form of sha256sum.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from pydantic import TypeAdapter, ValidationError

from gemma_server.errors import ModelLoadError
from model import Network, Parameters

_CONFIG = "config.json"
_PARAMETERS = "parameters"
_CHECKSUMS = "checksums.txt"
_REMEDY = "train again, with train.py"


@dataclass(frozen=True)
class Config:
    """What the parameters alone do not say; `labels` are the classes' names, in their order."""

    labels: tuple[str, ...]
    channels: tuple[int, ...] = (16, 32, 64)
    hidden: int = 128

    def network(self) -> Network:
        """The network that the parameters are for."""
        return Network(self.channels, self.hidden, len(self.labels))


_JSON = TypeAdapter(Config)


def save(folder: Path, config: Config, parameters: Parameters) -> None:
    """Write the directory, or what it has of these files anew.

    The checksums come last: what was interrupted before has none, and cannot be opened.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CHECKSUMS).unlink(missing_ok=True)
    (folder / _CONFIG).write_bytes(_JSON.dump_json(config, indent=2) + b"\n")
    with ocp.StandardCheckpointer() as checkpointer:
        tree = jax.device_get(dict(parameters))  # so that any device can read them back
        checkpointer.save((folder / _PARAMETERS).absolute(), tree, force=True)
    (folder / _CHECKSUMS).write_text("".join(f"{line}\n" for line in _checksums(folder)))


def read(folder: Path) -> tuple[Config, Parameters]:
    """What `save` wrote; the parameters as NumPy arrays.

    Raises:
        ModelLoadError: the directory is missing, incomplete, damaged, or of another version.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"{folder}: no such directory; {_REMEDY}")
    try:
        _check(folder)
        config = _JSON.validate_json((folder / _CONFIG).read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{error.filename}: {error.strerror}; {_REMEDY}") from None
    except ValidationError:
        raise ModelLoadError(f"{folder / _CONFIG}: of another version; {_REMEDY}") from None
    with ocp.StandardCheckpointer() as checkpointer:
        return config, checkpointer.restore((folder / _PARAMETERS).absolute())


def _check(folder: Path) -> None:
    """Hold all files against their checksums: Orbax does not notice a weight that has changed."""
    saved = (folder / _CHECKSUMS).read_text(errors="replace").splitlines()
    differing = sorted(set(saved) ^ set(_checksums(folder)))
    if differing:
        name = differing[0].partition("  ")[2]
        raise ModelLoadError(f"{folder / name}: missing, or not as it was saved; {_REMEDY}")


def _checksums(folder: Path) -> Iterator[str]:
    for path in (folder / _CONFIG, *sorted((folder / _PARAMETERS).rglob("*"))):
        if path.is_file():
            yield f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}"
