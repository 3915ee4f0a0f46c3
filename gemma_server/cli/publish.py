"""`gemma-server publish`: makes a checkpoint the next version in a directory of versions."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from gemma_server.cli import exits
from gemma_server.cli.byte_progress import ByteProgress
from gemma_server.cli.opening import open_or_fail
from gemma_server.cli.options import tokenizer_option
from gemma_server.cli.scratch import scratch_beside
from gemma_server.errors import ModelLoadError, UsageError
from gemma_server.serving.checkpoint import Checkpoint, open_checkpoint
from gemma_server.serving.source import WARMUP, version_numbers
from gemma_server.weights.source import Progress

_BLOCK_BYTES = 8 << 20


def publish(
    checkpoint: Checkpoint,
    base: Path,
    number: int | None,
    warmup: Path | None,
    progress: Progress,
    at: Callable[[str], None],
) -> Path:
    """Copy the checkpoint to `base` under this number, or the next; the new version's path.

    It is copied aside, read back, opened, and renamed: a server never sees a part of it.

    Raises:
        UsageError: there is such a version, or it cannot be written.
        ModelLoadError: the copy is not what was copied.
    """
    try:
        base.mkdir(exist_ok=True)
        target = base / str(_next(base) if number is None else number)
        if target.name in {path.name for path in base.iterdir()}:
            raise UsageError(f"{target} exists: versions do not change; take another number")
        with scratch_beside(target) as scratch:
            files = dict(_files(checkpoint, warmup))
            version = scratch / target.name
            at(f"copying to {target}")
            _copy(files, version, progress)
            at("reading the copy")
            open_checkpoint(_main_file(checkpoint, version))
            version.rename(target)
    except OSError as error:
        raise UsageError(f"cannot write a version to {base}: {error.strerror or error}") from None
    return target


def _next(base: Path) -> int:
    return max(version_numbers(base), default=0) + 1


def _files(checkpoint: Checkpoint, warmup: Path | None) -> Iterator[tuple[str, Path]]:
    """What is copied, by its path in the version.

    Raises:
        UsageError: a server would read another tokenizer.
    """
    path = checkpoint.weights.path
    if path.suffix == ".gguf" and checkpoint.tokenizer_from != path:
        raise UsageError(f"{path} brings its own tokenizer, and a version of it keeps that")
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield str(file.relative_to(path)), file
    else:
        yield path.name, path
    tokenizer = checkpoint.tokenizer_from
    if tokenizer != path and tokenizer.parent != path:  # it was named, or lies beside
        yield "tokenizer.json" if tokenizer.suffix == ".json" else "tokenizer.model", tokenizer
    if warmup is not None:
        yield WARMUP, warmup


def _main_file(checkpoint: Checkpoint, version: Path) -> Path:
    path = checkpoint.weights.path
    return version if path.is_dir() else version / path.name


def _copy(files: dict[str, Path], version: Path, progress: Progress) -> None:
    """Copy the files, to the disk, and compare."""
    sizes = {name: file.stat().st_size for name, file in files.items()}
    total, done = 2 * sum(sizes.values()), 0
    digests: dict[str, str] = {}
    for name, file in files.items():
        target = version / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("wb") as out:
            for block in _blocks(file):
                digest.update(block)
                out.write(block)
                done += len(block)
                progress(done, total)
            out.flush()
            os.fsync(out.fileno())
        shutil.copymode(file, target)
        digests[name] = digest.hexdigest()
    for name, expected in digests.items():
        digest = hashlib.sha256()
        for block in _blocks(version / name):
            digest.update(block)
            done += len(block)
            progress(done, total)
        if digest.hexdigest() != expected:
            raise ModelLoadError(f"{name}: the copy differs; is the disk sound?")


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            yield block


@click.command("publish")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("base", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--number", type=click.IntRange(0, 10**18 - 1), help="its number; by default the next"
)
@click.option(
    "--warmup",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="bodies of /prompt, one a line, that it has to answer before it takes requests",
)
@tokenizer_option
def command(
    source: Path, base: Path, number: int | None, warmup: Path | None, tokenizer: Path | None
) -> None:
    """Copy the checkpoint SOURCE into BASE as its next version, which servers then load.

    BASE is made if there is none.
    """
    checkpoint = open_or_fail(source, tokenizer)
    try:
        with ByteProgress() as progress:
            target = publish(checkpoint, base, number, warmup, progress, progress.at)
    except UsageError as error:
        exits.fail(str(error), exits.USAGE)
    except ModelLoadError as error:
        exits.fail(f"cannot publish: {error}", exits.LOAD)
    click.echo(f"published {target}; serve it with --model-base-path {base.resolve()}")
