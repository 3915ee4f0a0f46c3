"""Real checkpoints of tiny models, served by the real server, against the oracle's text."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from testing.hugging_face import write_hf
from testing.oracle import gemma as oracle
from testing.oracle.gemma import PRESETS
from testing.server import run
from testing.tiny import (
    Weights,
    tiny_pieces,
    tiny_weights,
    write_gguf,
    write_orbax,
    write_tokenizer,
)
from tests.server.conftest import Start
from tests.text.test_tokenizer_json import as_json

pytestmark = pytest.mark.slow

SERVE_REAL = (
    "-m",
    "gemma_server",
    "serve",
    "--port",
    "0",
    "--slots",
    "2",
    "--context-length",
    "96",
)
PROMPT = "A prompt of some length, longer than a window and a chunk: 0123456789"
STEPS = 16


def _orbax(name: str, weights: Weights, folder: Path) -> dict[str, str]:
    """The two variables of the article's run script."""
    return {
        "MODEL_CHECKPOINT": str(write_orbax(folder / "checkpoint", weights)),
        "MODEL_TOKENIZER": str(write_tokenizer(folder / "tokenizer.model", PRESETS[name].vocab)),
    }


def _hugging_face(name: str, weights: Weights, folder: Path) -> dict[str, str]:
    """With the tokenizer in its other form."""
    path = write_hf(folder / "hf", name, weights, shards=2)
    (path / "tokenizer.json").write_text(json.dumps(as_json(*tiny_pieces(PRESETS[name].vocab))))
    return {"MODEL_CHECKPOINT": str(path)}


def _converted(name: str, weights: Weights, folder: Path) -> dict[str, str]:
    source = _hugging_face(name, weights, folder)["MODEL_CHECKPOINT"]
    target = folder / "converted"
    assert run(folder, ("-m", "gemma_server", "convert", source, str(target)), {}).returncode == 0
    return {"MODEL_CHECKPOINT": str(target)}


def _gguf(name: str, weights: Weights, folder: Path) -> dict[str, str]:
    return {"MODEL_CHECKPOINT": str(write_gguf(folder / "model.gguf", name, weights))}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("gemma1-mqa", _orbax),
        ("gemma1-mha", _hugging_face),
        ("gemma2", _converted),
        ("gemma3", _gguf),
        ("gemma3-small", _hugging_face),
    ],
)
def test_the_server_answers_what_the_oracle_would(
    start: Start,
    tmp_path: Path,
    name: str,
    write: Callable[[str, Weights, Path], dict[str, str]],
) -> None:
    weights = tiny_weights(name)
    server = start(*SERVE_REAL, "--dtype", "float32", env=write(name, weights, tmp_path))
    tokenizer = Tokenizer(model_from_pieces(*tiny_pieces(PRESETS[name].vocab)))
    ids = oracle.greedy(PRESETS[name], weights, tokenizer.encode(PROMPT), STEPS)
    answer = server.prompt(PROMPT, sampling_steps=STEPS, ignore_eos=True)
    assert answer.json["response"] == tokenizer.decode(ids)
    assert answer.json["usage"]["completion_tokens"] == STEPS
    # A context that is no multiple of a block is filled to its end and not beyond.
    to_the_end = server.prompt(PROMPT, sampling_steps=96, ignore_eos=True)
    assert to_the_end.json["finish_reason"] == "length"
    assert sum(to_the_end.json["usage"].values()) == 96


def test_without_a_compiler_it_serves_float32(start: Start, tmp_path: Path) -> None:
    weights = tiny_weights("gemma3")
    # Other flags make it another library than the one that installing has built.
    without = {"PATH": str(tmp_path), "CXXFLAGS": "-DNOT_BUILT_YET"}
    server = start(*SERVE_REAL, env=_gguf("gemma3", weights, tmp_path) | without)
    assert "native kernels cannot be used: no C++ compiler found" in server.stderr
    tokenizer = Tokenizer(model_from_pieces(*tiny_pieces(PRESETS["gemma3"].vocab)))
    ids = oracle.greedy(PRESETS["gemma3"], weights, tokenizer.encode(PROMPT), STEPS)
    answer = server.prompt(PROMPT, sampling_steps=STEPS, ignore_eos=True)
    assert answer.json["response"] == tokenizer.decode(ids)


def test_bfloat16_serves_too(start: Start, tmp_path: Path) -> None:
    env = _gguf("gemma3", tiny_weights("gemma3"), tmp_path)
    server = start(*SERVE_REAL, "--dtype", "bfloat16", env=env)
    assert server.prompt("hello", ignore_eos=True, sampling_steps=4).status == 200


def test_nothing_compiles_after_ready(start: Start, tmp_path: Path) -> None:
    server = start(*SERVE_REAL, env=_gguf("gemma3", tiny_weights("gemma3"), tmp_path))
    before = server.metrics()["gemma_compilations_total"]
    assert before > 0
    server.prompt(["a", "b" * 50, "c"], temperature=1.0, top_k=3, top_p=0.5, min_p=0.1)
    server.prompt("d", sampling_steps=5)
    assert server.metrics()["gemma_compilations_total"] == before


def _refusal(tmp_path: Path, env: dict[str, str]) -> str:
    done = run(tmp_path, SERVE_REAL, env, timeout_s=90)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "cannot load the model" in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_tokenizer_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    env = _orbax("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    wrong = write_tokenizer(tmp_path / "wrong.model", 463)
    line = _refusal(tmp_path, {**env, "MODEL_TOKENIZER": str(wrong)})
    assert "463 pieces" in line
    assert "307" in line


@pytest.mark.parametrize("content", [None, b"", b"no tokenizer at all"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    env = _orbax("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    path = tmp_path / "broken.model"
    if content is not None:
        path.write_bytes(content)
    assert "broken.model" in _refusal(tmp_path, {**env, "MODEL_TOKENIZER": str(path)})


def test_an_orbax_checkpoint_without_a_tokenizer_says_what_to_set(tmp_path: Path) -> None:
    env = _orbax("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    del env["MODEL_TOKENIZER"]
    assert "MODEL_TOKENIZER" in _refusal(tmp_path, env)


def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    env = _gguf("gemma3", tiny_weights("gemma3"), tmp_path)
    path = Path(env["MODEL_CHECKPOINT"])
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut short" in _refusal(tmp_path, env)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = tiny_weights("gemma1-mqa")
    del weights["transformer/layer_1/mlp/linear"]
    assert "layer_1" in _refusal(tmp_path, _orbax("gemma1-mqa", weights, tmp_path))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = tiny_weights("gemma1-mqa")
    norm = weights["transformer/layer_1/pre_ffw_norm"]
    norm["scale"] = norm["scale"][:-1]
    line = _refusal(tmp_path, _orbax("gemma1-mqa", weights, tmp_path))
    width = PRESETS["gemma1-mqa"].width
    assert "layer_1/pre_feed_forward_norm/scale" in line
    assert f"[{width}]" in line
    assert f"[{width - 1}]" in line


@pytest.mark.parametrize("name", ["programs", "native"])
def test_code_that_others_could_have_written_is_not_run(tmp_path: Path, name: str) -> None:
    env = _gguf("gemma3", tiny_weights("gemma3"), tmp_path)
    directory = tmp_path / "cache" / name
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    line = _refusal(tmp_path, {**env, "GEMMA_CACHE_DIR": str(tmp_path / "cache")})
    assert f"{directory}: others may write there" in line
