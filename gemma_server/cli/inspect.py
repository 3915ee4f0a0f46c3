"""`gemma-server inspect`: what a checkpoint is and needs, from its headers alone."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
from rich.filesize import decimal

from gemma_server.cli.opening import open_or_fail
from gemma_server.cli.options import tokenizer_option
from gemma_server.cli.report import format_facts
from gemma_server.model.config import GemmaConfig, LayerConfig
from gemma_server.serving.checkpoint import Checkpoint
from gemma_server.settings import Settings
from gemma_server.weights.source import OWN_TABLE

# 8-bit weights have a scale of 16 bits to every 32; the cache beside them is bfloat16.
_WEIGHT_BYTES = {"int8": 1 + 2 / 32, "bfloat16": 2, "float32": 4}
_CACHE_BYTES = {"bfloat16": 2, "float32": 4}


def describe(checkpoint: Checkpoint) -> str:
    """A table for a person. Nothing is loaded; jax is not imported."""
    config = checkpoint.config
    stored = sorted(checkpoint.weights.stored.items(), key=lambda item: -item[1])
    return format_facts(
        {
            "checkpoint": str(checkpoint.weights.path),
            "model": f"{config.name}, {config.parameters / 1e6:,.0f} million parameters",
            "format": checkpoint.weights.format,
            "stored as": ", ".join(f"{kind} {decimal(nbytes)}" for kind, nbytes in stored),
            "layers": f"{len(config.layers)} of width {config.width}, "
            f"feed-forward {_each(layer.hidden for layer in config.layers)}",
            "heads": _each(_heads(layer) for layer in config.layers),
            "context": _context(config),
            "tokenizer": _tokenizer(checkpoint),
            **({} if config.bidirectional else {"sampling": _sampling(checkpoint)}),
            "weights take": _weights(checkpoint),
            **_kind(config),
        }
    )


def _context(config: GemmaConfig) -> str:
    text = f"{config.context_length:,} tokens"
    windows = [layer.window for layer in config.layers if layer.window is not None]
    if not windows:
        return text
    share = f"{len(windows)} of {len(config.layers)} layers are local"
    if config.bidirectional:
        return f"{text}; {share} and see {_each(windows)} tokens to each side, their own included"
    return f"{text}; {share} and see {_each(f'{window:,}' for window in windows)}"


def _heads(layer: LayerConfig) -> str:
    counts = f"{layer.heads} for queries, {layer.kv_heads} for keys and values"
    return f"{counts}, of width {layer.head_dim}"


def _each(values: Iterable[object]) -> str:
    """The different values over all layers, once each."""
    return " or ".join(dict.fromkeys(map(str, values)))


def _tokenizer(checkpoint: Checkpoint) -> str:
    tokenizer = checkpoint.tokenizer
    stops = ", ".join(map(str, sorted(tokenizer.stop_ids)))
    return f"{checkpoint.tokenizer_from.name}, {tokenizer.vocab_size:,} pieces, ends at {stops}"


def _kind(config: GemmaConfig) -> dict[str, str]:
    if config.bidirectional:
        return {"makes": f"embeddings of {config.embedding_width} numbers, no text"}
    return {"cache takes": _cache(config)}


def _weights(checkpoint: Checkpoint) -> str:
    numbers, table = checkpoint.config.parameters, checkpoint.weights.own_table
    if table is None:
        return _each_dtype(numbers, _WEIGHT_BYTES)
    numbers -= math.prod(checkpoint.config.leaf_shapes[OWN_TABLE])
    where = "a row for each token's layers, read from the file as it is"
    beside = f"beside {decimal(table.layout.nbytes)} in {table.layout.kind}, {where}"
    return f"{_each_dtype(numbers, _WEIGHT_BYTES)}; {beside}"


def _sampling(checkpoint: Checkpoint) -> str:
    """What the files recommend."""
    stated = vars(checkpoint.sampling).items()
    said = [f"{name.replace('_', '-')} {value:g}" for name, value in stated if value is not None]
    return ", ".join(said) or "its files recommend nothing"


def _cache(config: GemmaConfig) -> str:
    slots, tokens = (Settings.model_fields[name].default for name in ("slots", "context_length"))
    tokens = min(tokens, config.context_length)
    each = _each_dtype(config.cached_numbers_per_token * slots * tokens, _CACHE_BYTES)
    return f"{each}, for {slots} slots of {tokens:,} tokens (--slots, --context-length)"


def _each_dtype(numbers: int, bytes_of: Mapping[str, float]) -> str:
    return ", ".join(
        f"{decimal(round(numbers * size))} in {dtype}" for dtype, size in bytes_of.items()
    )


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@tokenizer_option
def command(path: Path, tokenizer: Path | None) -> None:
    """Say what the checkpoint at PATH is and needs, without loading it."""
    click.echo(describe(open_or_fail(path, tokenizer)))
