"""Real checkpoints of tiny models, served by the real server, against the oracle's text."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemma_server.errors import ModelLoadError
from gemma_server.serving.checkpoint import open_checkpoint
from gemma_server.serving.loader import load_model
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import load_settings
from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from testing.counts import is_long
from testing.gemma4 import gemma4_weights, write_gemma4_hf, write_gemma4_tokenizer
from testing.hugging_face import write_hf
from testing.oracle import gemma as oracle
from testing.oracle import gemma4
from testing.oracle.gemma import PRESETS
from testing.server import Server, run
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

# A context that is no multiple of a block. One slot, for which there are the fewest programs.
SERVE_REAL = (
    *("-m", "gemma_server", "serve", "--port", "0"),
    *("--slots", "1", "--context-length", "96"),
)
# Most of such a server's start is compiling: code that is not made fast is there in half the time.
COMPILED_SOON = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
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


def _assert_answers_as_the_oracle(server: Server, name: str, weights: Weights) -> None:
    tokenizer = Tokenizer(model_from_pieces(*tiny_pieces(PRESETS[name].vocab)))
    ids = oracle.greedy(PRESETS[name], weights, tokenizer.encode(PROMPT), STEPS)
    answer = server.prompt(PROMPT, sampling_steps=STEPS, ignore_eos=True)
    assert answer.json["response"] == tokenizer.decode(ids)
    assert answer.json["usage"]["completion_tokens"] == STEPS


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("gemma1-mqa", _orbax),
        ("gemma2", _converted),
        ("gemma3-small", _hugging_face),
        *([("gemma1-mha", _hugging_face)] if is_long() else []),
    ],
)
def test_the_server_answers_what_the_oracle_would(
    start: Start,
    tmp_path: Path,
    name: str,
    write: Callable[[str, Weights, Path], dict[str, str]],
) -> None:
    weights = tiny_weights(name)
    env = COMPILED_SOON | write(name, weights, tmp_path)
    server = start(*SERVE_REAL, "--dtype", "float32", env=env)
    _assert_answers_as_the_oracle(server, name, weights)
    # The context is filled to its end and not beyond.
    to_the_end = server.prompt(PROMPT, sampling_steps=96, ignore_eos=True)
    assert to_the_end.json["finish_reason"] == "length"
    usage = to_the_end.json["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 96


def test_gemma4_is_converted_and_served(start: Start, tmp_path: Path) -> None:
    name, folder = "gemma4-e", write_gemma4_hf(tmp_path / "hf", "gemma4-e")
    write_gemma4_tokenizer(folder, name)
    converted = tmp_path / "converted"
    arguments = ("-m", "gemma_server", "convert", str(folder), str(converted))
    assert run(tmp_path, arguments, {}).returncode == 0
    env = COMPILED_SOON | {"MODEL_CHECKPOINT": str(converted)}
    server = start(*SERVE_REAL, "--dtype", "float32", env=env)
    tokenizer = open_checkpoint(folder).tokenizer
    ids = gemma4.greedy(gemma4.PRESETS[name], gemma4_weights(name), tokenizer.encode(PROMPT), STEPS)
    answer = server.prompt(PROMPT, sampling_steps=STEPS, ignore_eos=True)
    assert answer.json["response"] == tokenizer.decode(ids)
    # Of a prompt that is scored, all positions go through the layers without keys of their own.
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 0}
    [choice] = server.ask("POST", "/v1/completions", body).json["choices"]
    read = tokenizer.encode(PROMPT)
    logits = gemma4.logits(gemma4.PRESETS[name], gemma4_weights(name), read)[:-1]
    scores = np.take_along_axis(logits, np.array(read[1:])[:, None], axis=-1)[:, 0]
    scores -= np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"][1:], scores, atol=1e-3)
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    tokens = server.ask("POST", "/tokenize", {"messages": messages}).json["tokens"]
    turns = "<|turn>system\na<turn|>\n<|turn>user\nb<turn|>\n<|turn>model\n"
    assert tokens == tokenizer.encode(turns)


def test_a_gguf_without_a_compiler_is_served_in_float32(start: Start, tmp_path: Path) -> None:
    weights = tiny_weights("gemma3")
    # Other flags make it another library than the one that installing has built.
    without = {"PATH": str(tmp_path), "CXXFLAGS": "-DNOT_BUILT_YET"}
    env = COMPILED_SOON | _gguf("gemma3", weights, tmp_path) | without
    server = start(*SERVE_REAL, env=env)
    assert "native kernels cannot be used: no C++ compiler found" in server.stderr
    _assert_answers_as_the_oracle(server, "gemma3", weights)


def test_bfloat16_serves_too_and_nothing_compiles_after_ready(start: Start, tmp_path: Path) -> None:
    env = COMPILED_SOON | _gguf("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    server = start(*SERVE_REAL, "--slots", "2", "--dtype", "bfloat16", env=env)
    before = server.metrics()["gemma_compilations_total"]
    assert before > 0
    drawn = {"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    assert server.prompt(["a", "b" * 50, "c"], **drawn).status == 200
    assert server.prompt("d", ignore_eos=True, sampling_steps=5).status == 200
    assert server.metrics()["gemma_compilations_total"] == before


# What is refused; tests/server/test_refusals.py has the process that ends so.


def _refusal(env: dict[str, str]) -> str:
    """Why this checkpoint is not opened with this tokenizer, if one is named."""
    tokenizer = Path(env["MODEL_TOKENIZER"]) if "MODEL_TOKENIZER" in env else None
    with pytest.raises(ModelLoadError) as refused:
        open_checkpoint(Path(env["MODEL_CHECKPOINT"]), tokenizer)
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_a_tokenizer_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    env = _orbax("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    wrong = write_tokenizer(tmp_path / "wrong.model", 463)
    line = _refusal({**env, "MODEL_TOKENIZER": str(wrong)})
    assert "463 pieces" in line
    assert "307" in line


@pytest.mark.parametrize("content", [None, b"", b"no tokenizer at all"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    env = _orbax("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    path = tmp_path / "broken.model"
    if content is not None:
        path.write_bytes(content)
    assert "broken.model" in _refusal({**env, "MODEL_TOKENIZER": str(path)})


def test_an_orbax_checkpoint_without_a_tokenizer_says_what_to_set(tmp_path: Path) -> None:
    env = _orbax("gemma1-mqa", tiny_weights("gemma1-mqa"), tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    del env["MODEL_TOKENIZER"]
    assert "MODEL_TOKENIZER" in _refusal(env)


def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    env = _gguf("gemma3", tiny_weights("gemma3"), tmp_path)
    path = Path(env["MODEL_CHECKPOINT"])
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut short" in _refusal(env)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = tiny_weights("gemma1-mqa")
    del weights["transformer/layer_1/mlp/linear"]
    assert "layer_1" in _refusal(_orbax("gemma1-mqa", weights, tmp_path))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = tiny_weights("gemma1-mqa")
    norm = weights["transformer/layer_1/pre_ffw_norm"]
    norm["scale"] = norm["scale"][:-1]
    line = _refusal(_orbax("gemma1-mqa", weights, tmp_path))
    width = PRESETS["gemma1-mqa"].width
    assert "layer_1/pre_feed_forward_norm/scale" in line
    assert f"[{width}]" in line
    assert f"[{width - 1}]" in line


@pytest.mark.parametrize("name", ["programs", "native"])
def test_code_that_others_could_have_written_is_not_run(tmp_path: Path, name: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", "gemma3", tiny_weights("gemma3"))
    directory = tmp_path / "cache" / name
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    own = load_settings(model_checkpoint=path, cache_dir=tmp_path / "cache")
    with pytest.raises(ModelLoadError) as refused:
        load_model(own, ServableVersion("tiny"), lambda error: None)
    assert str(refused.value).startswith(f"{directory}: others may write there")
