"""`gemma-server convert`: rewrites any checkpoint in the form that starts fastest.

That form is the runner's own tree, uncompressed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gemma_server.cli import exits
from gemma_server.cli.byte_progress import ByteProgress
from gemma_server.cli.opening import open_or_fail
from gemma_server.cli.options import tokenizer_option
from gemma_server.cli.scratch import scratch_beside
from gemma_server.errors import ModelLoadError, UsageError
from gemma_server.serving.checkpoint import Checkpoint
from gemma_server.weights.converted import write_description
from gemma_server.weights.files import CHAT_TEMPLATE
from gemma_server.weights.source import Progress, load_leaves

# The bytes of one later read: small enough for memory, large enough for the disk.
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
    """Write the checkpoint to the new directory `target`, atomically.

    Takes the memory of the weights in `dtype`, float32 or bfloat16, and up to a gigabyte for
    writes in flight. `progress` gets the bytes read, `at` the name of the current stage.

    Raises:
        UsageError: the target exists already, or cannot be written.
        ModelLoadError: the checkpoint cannot be read.
    """
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists; name a new directory")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: there is no directory {target.absolute().parent}")
    try:
        with scratch_beside(target) as scratch:
            at(f"reading as {dtype}")
            tree = _tree(checkpoint, dtype, progress)
            at(f"writing {target}")
            _save(scratch / "tree", tree)
            write_description(
                scratch / "tree",
                checkpoint.config,
                checkpoint.weights.stop_ids,
                checkpoint.sampling,
            )
            (scratch / "tree" / "tokenizer.model").write_bytes(checkpoint.tokenizer_model)
            if checkpoint.weights.chat_template is not None:
                (scratch / "tree" / CHAT_TEMPLATE).write_text(checkpoint.weights.chat_template)
            (scratch / "tree").rename(target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from None


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
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, save_concurrent_gb=1)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), tree, save_args=args)
    except ValueError as error:  # tensorstore's, for a full disk too
        reason = str(error).strip().splitlines() or ["unknown"]
        raise OSError(reason[0][:300]) from None


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto loses nothing: bfloat16 if all of SOURCE is, else float32",
)
@tokenizer_option
def command(source: Path, target: Path, dtype: str, tokenizer: Path | None) -> None:
    """Write the checkpoint SOURCE as the new directory TARGET, which starts fastest."""
    checkpoint = open_or_fail(source, tokenizer)
    dtype = lossless_dtype(checkpoint) if dtype == "auto" else dtype
    try:
        with ByteProgress() as progress:
            convert(checkpoint, target, dtype, progress, progress.at)
    except UsageError as error:
        exits.fail(str(error), exits.USAGE)
    except ModelLoadError as error:
        exits.fail(f"cannot convert: {error}", exits.LOAD)
    click.echo(f"wrote {target}; serve it with MODEL_CHECKPOINT={target.resolve()}")
