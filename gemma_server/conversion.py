"""Any checkpoint, written as the one that starts fastest: the runner's own tree, uncompressed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_server.checkpoint import Checkpoint
from gemma_server.errors import UsageError
from gemma_server.weights.converted import write_config
from gemma_server.weights.source import Progress, load_leaves

# So much is read at a time later: small enough for memory, large enough for the disk.
_CHUNK_BYTES = 32 << 20


def lossless_dtype(checkpoint: Checkpoint) -> str:
    """bfloat16 where the checkpoint stores nothing finer, else float32."""
    kinds = {kind.lower() for kind in checkpoint.weights.stored}
    return "bfloat16" if kinds <= {"bfloat16", "bf16"} else "float32"


def convert(
    checkpoint: Checkpoint,
    target: Path,
    dtype: str,
    progress: Progress,
    at: Callable[[str], None],
) -> None:
    """Write the checkpoint to the new directory `target`; all of it, or nothing.

    Takes as much memory as the weights in `dtype`, float32 or bfloat16. `progress` is told of
    what has been read, `at` what is being done.

    Raises:
        UsageError: the target is there already, or cannot be written.
        ModelLoadError: the checkpoint cannot be read.
    """
    if target.exists():
        raise UsageError(f"{target} exists; name a new directory")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        at(f"reading as {dtype}")
        tree = _tree(checkpoint, dtype, progress)
        at(f"writing {target}")
        _save(partial, tree)
        write_config(partial, checkpoint.config)
        (partial / "tokenizer.model").write_bytes(checkpoint.tokenizer_model)
        partial.rename(target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tree(checkpoint: Checkpoint, dtype: str, progress: Progress) -> dict[str, Any]:
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    jax.config.update("jax_platforms", "cpu")  # only shapes are wanted; a GPU is not taken
    from gemma_server.model.transformer import abstract_params

    abstract = flatten_dict(abstract_params(checkpoint.config, dtype), sep="/")
    leaves = dict(load_leaves(checkpoint.weights, abstract, progress))
    tree: dict[str, Any] = unflatten_dict(leaves, sep="/")
    return tree


def _save(path: Path, tree: dict[str, Any]) -> None:
    import jax
    import orbax.checkpoint as ocp

    args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(path.absolute(), tree, save_args=args)
