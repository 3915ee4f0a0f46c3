"""How long loading takes and what it peaks at, for models of real size in every format.

    python -m benchmarks.loading [--models gemma-3-270m gemma-2-2b] [--dtypes float32 bfloat16]

Weights are random: neither time nor memory depend on their values. Each load is a process of its
own; its time is from opening the checkpoint to the last weight on the device, its peak that of the
whole process, Python and jax included. The files have just been written, so they are in the page
cache. The limit is what docs/models.md promises: 1.3 times the resident weights and 400 MB.

The last line of standard output is the result as one JSON document.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemma_server.cli.report import format_table
from gemma_server.model.presets import RELEASED, Preset
from testing.hugging_face import hf_config, hf_tensors
from testing.layouts import stacked
from testing.oracle.gemma import OracleConfig
from testing.tiny import finish_gguf, gguf_tensors, gguf_writer, write_orbax, write_tokenizer

ROWS = {row.name: row for row in RELEASED}
PER_WEIGHT, FIXED_MB = 1.3, 400

Flat = dict[str, dict[str, npt.NDArray[Any]]]
Write = Callable[[Path, Preset, Flat], Path]


def main() -> None:
    """Write each model in each format, load it in each dtype, print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.loading", description="time and peak memory")
    parser.add_argument("--models", nargs="+", choices=ROWS, default=["gemma-3-270m"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--one", nargs=2, metavar=("PATH", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_load(Path(options.one[0]), options.one[1])))
        return
    results = []
    for model in options.models:
        formats = {name: FORMATS[name] for name in options.formats}
        results += measure(ROWS[model], formats, options.dtypes)
    columns = list(results[0])
    print(format_table([columns, *([str(result[name]) for name in columns] for result in results)]))
    print(json.dumps({"loading": results}))


def measure(
    config: Preset, formats: Mapping[str, Write], dtypes: Sequence[str]
) -> list[dict[str, Any]]:
    """Write a model of this size in each format, and load it in each dtype."""
    results = []
    with tempfile.TemporaryDirectory(prefix="gemma-loading-") as folder:
        weights = _random(config)
        for name, write in formats.items():
            path = write(Path(folder) / name.replace(" ", "-"), config, weights)
            write_tokenizer(path.parent / "tokenizer.model", config.vocab)
            for dtype in dtypes:
                one = ["-m", "benchmarks.loading", "--one", str(path), dtype]
                done = subprocess.run([sys.executable, *one], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                facts = {"model": config.name, "format": name, "file_mb": _size_mb(path)}
                results.append(facts | {"dtype": dtype} | json.loads(done.stdout))
                print(results[-1], file=sys.stderr, flush=True)
            subprocess.run(["rm", "-r", str(path)], check=True)  # room for the next
    return results


def _load(path: Path, dtype: str) -> dict[str, Any]:
    """Load in this process; what it took."""
    import jax

    from gemma_server.serving.checkpoint import open_checkpoint
    from gemma_server.serving.on_device import put_on_device

    jax.devices()
    began = time.monotonic()
    checkpoint = open_checkpoint(path, path.parent / "tokenizer.model")
    params = put_on_device(checkpoint, np.dtype(dtype), lambda done, total: None)
    taken = time.monotonic() - began
    weights_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6
    # Not getrusage: its maximum outlives exec, and so is the parent's.
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    peak_mb = int(peak) * 1024 / 1e6
    return {
        "load_s": round(taken, 1),
        "weights_mb": round(weights_mb),
        "peak_mb": round(peak_mb),
        "limit_mb": round(PER_WEIGHT * weights_mb + FIXED_MB),
    }


def _random(config: Preset) -> Flat:
    """Random bfloat16 weights in the flat layout."""
    rng = np.random.default_rng(0)
    n, k, h, d, f = config.heads, config.kv_heads, config.head_dim, config.width, config.hidden
    matrices: dict[str, tuple[int, ...]] = {
        "attn/attn_vec_einsum": (n, h, d),
        "mlp/gating_einsum": (2, f, d),
        "mlp/linear": (f, d),
    }
    if n == k:
        matrices["attn/qkv_einsum"] = (3, n, d, h)
    else:
        matrices |= {"attn/q_einsum": (n, d, h), "attn/kv_einsum": (2, k, d, h)}
    norms = {"pre_attention_norm": d, "pre_ffw_norm": d}
    norms |= {"post_attention_norm": d, "post_ffw_norm": d} if config.post_norms else {}
    norms |= {"attn/_query_norm": h, "attn/_key_norm": h} if config.qk_norm else {}

    def draw(*shape: int) -> npt.NDArray[Any]:
        return rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    flat: Flat = {
        "transformer/embedder": {"input_embedding": draw(config.vocab, d)},
        "transformer/final_norm": {"scale": draw(d)},
    }
    for i in range(config.layers):
        layer = f"transformer/layer_{i}"
        flat |= {f"{layer}/{name}": {"w": draw(*shape)} for name, shape in matrices.items()}
        flat |= {f"{layer}/{name}": {"scale": draw(size)} for name, size in norms.items()}
    return flat


def _oracle(config: Preset) -> OracleConfig:
    """The same architecture in the words of the tests' writers."""
    kinds = config.config().layers
    return OracleConfig(
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        query_scale=config.query_scale,
        windows=tuple(kind.window for kind in kinds),
        rope_bases=tuple(kind.rope_base for kind in kinds),
        rope_factors=tuple(kind.rope_factor for kind in kinds),
        attention_softcap=config.attention_softcap,
        final_softcap=config.final_softcap,
        qk_norm=config.qk_norm,
        post_norms=config.post_norms,
    )


def _family(config: Preset) -> str:
    if config.final_softcap and not config.post_norms:
        return "vaultgemma"
    return "gemma3" if config.qk_norm else "gemma2" if config.post_norms else "gemma1"


def _write_orbax(path: Path, config: Preset, weights: Flat) -> Path:
    return write_orbax(path, weights)


def _write_stacked(path: Path, config: Preset, weights: Flat) -> Path:
    return write_orbax(path, stacked(weights, config.global_every))


def _write_hugging_face(path: Path, config: Preset, weights: Flat) -> Path:
    from safetensors.numpy import save_file

    path.mkdir()
    oracle = _oracle(config)
    (path / "config.json").write_text(json.dumps(hf_config(_family(config), oracle)))
    tensors = {f"model.{name}": array for name, array in hf_tensors(oracle, weights).items()}
    save_file(tensors, path / "model.safetensors")
    return path


def _write_gguf(path: Path, config: Preset, weights: Flat) -> Path:
    """Matrices in Q8_0, as most people have them."""
    import gguf
    from gguf.quants import quantize

    oracle = _oracle(config)
    writer = gguf_writer(path, _family(config), oracle)
    for name, array in gguf_tensors(oracle, weights).items():
        if array.ndim == 1:
            writer.add_tensor(name, array.astype(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(array.astype(np.float32), kind), raw_dtype=kind)
    finish_gguf(writer)
    return path


def _convert(path: Path, config: Preset, weights: Flat) -> Path:
    source = _write_hugging_face(path.with_name("source"), config, weights)
    write_tokenizer(source / "tokenizer.model", config.vocab)
    command = [sys.executable, "-m", "gemma_server", "convert", str(source), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["rm", "-r", str(source)], check=True)
    return path


FORMATS: dict[str, Write] = {
    "orbax flat": _write_orbax,
    "orbax stacked": _write_stacked,
    "hugging face": _write_hugging_face,
    "gguf Q8_0": _write_gguf,
    "converted": _convert,
}


def _size_mb(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6)


if __name__ == "__main__":
    main()
