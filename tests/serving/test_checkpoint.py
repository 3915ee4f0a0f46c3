"""What belongs to the weights: which tokenizer, stop ids and chat template a checkpoint brings."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError
from gemma_server.serving.checkpoint import Checkpoint, open_checkpoint
from gemma_server.text.chat import Message
from gemma_server.text.chat_template import GemmaTemplate
from gemma_server.text.sentencepiece_model import model_from_pieces
from testing.hugging_face import write_hf
from testing.oracle.gemma import PRESETS
from testing.tiny import tiny_pieces, tiny_weights, write_gguf, write_orbax
from tests.text.test_jinja_template import CHATML, GEMMA
from tests.text.test_tokenizer_json import as_json

NAME = "gemma3-small"
ROWS = PRESETS[NAME].vocab
IMAGE = "<image_soft_token>"
NORMAL, CONTROL = 1, 3
Vocabulary = tuple[list[str], list[float], list[int]]


def vocabulary(*more: str, kind: int = CONTROL, size: int = ROWS) -> Vocabulary:
    """So many pieces, and some behind them."""
    pieces, scores, types = tiny_pieces(size)
    return [*pieces, *more], [*scores, *[0.0] * len(more)], [*types, *[kind] * len(more)]


def gguf(folder: Path, found: Vocabulary, **more: Any) -> Path:
    tokens = dict(zip(("tokens", "scores", "token_type"), found, strict=True))
    metadata = {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}
    return write_gguf(folder / "model.gguf", NAME, tiny_weights(NAME), metadata | more)


def sentencepiece(folder: Path, found: Vocabulary) -> Path:
    path = write_orbax(folder / "orbax", tiny_weights(NAME))
    (path / "tokenizer.model").write_bytes(model_from_pieces(*found))
    return path


def hugging_face(folder: Path, found: Vocabulary) -> Path:
    path = write_hf(folder / "hf", NAME, tiny_weights(NAME))
    made = as_json(*found)
    made["added_tokens"].pop()  # the one that `as_json` puts behind all others
    (path / "tokenizer.json").write_text(json.dumps(made))
    return path


FORMATS = [gguf, sentencepiece, hugging_face]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("more", [(), (IMAGE,), (IMAGE, "<mine>")])
def test_control_tokens_without_a_row_are_left_out(
    tmp_path: Path, write: Any, more: tuple[str, ...]
) -> None:
    checkpoint = open_checkpoint(write(tmp_path, vocabulary(*more)))
    assert checkpoint.config.vocab == checkpoint.tokenizer.vocab_size == ROWS
    text = f"a{IMAGE}b"
    assert checkpoint.tokenizer.decode(checkpoint.tokenizer.encode(text)[1:]) == text


@pytest.mark.parametrize("write", [gguf, sentencepiece])
def test_a_piece_of_text_without_a_row_is_refused_by_name(tmp_path: Path, write: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"'word'.* has no embedding, .*do not belong"):
        open_checkpoint(write(tmp_path, vocabulary("word", kind=NORMAL)))


def test_tokenizer_json_wins_over_the_model_beside_it(tmp_path: Path) -> None:
    """A fine-tune's added tokens are in it alone; the model is often the original's."""
    path = hugging_face(tmp_path, vocabulary("<|im_end|>", size=ROWS - 1))
    (path / "tokenizer.model").write_bytes(model_from_pieces(*vocabulary(size=ROWS - 64)))
    found = open_checkpoint(path)
    assert found.tokenizer_from == path / "tokenizer.json"
    assert found.tokenizer.encode("a<|im_end|>")[-1] == ROWS - 1
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"json: .*MODEL_TOKENIZER=.*tokenizer.model"):
        open_checkpoint(path)


def test_declared_stop_ids_end_an_answer(tmp_path: Path) -> None:
    plain = open_checkpoint(gguf(tmp_path, vocabulary())).tokenizer.stop_ids
    more = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": ROWS + 5}
    assert open_checkpoint(gguf(tmp_path, vocabulary(), **more)).tokenizer.stop_ids == plain | {9}


def test_a_converted_checkpoint_keeps_what_the_original_declares(tmp_path: Path) -> None:
    more = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.chat_template": CHATML}
    original = gguf(tmp_path, vocabulary(IMAGE), **more)
    target = tmp_path / "converted"
    done = CliRunner().invoke(main, ["convert", str(original), str(target)])
    assert done.exit_code == 0, done.output
    one, other = open_checkpoint(original), open_checkpoint(target)
    assert other.tokenizer.stop_ids == one.tokenizer.stop_ids
    assert other.config == one.config
    assert hello(other) == hello(one)


def hello(checkpoint: Checkpoint) -> list[int]:
    return checkpoint.chat.encode([Message("user", "Hello")])


def test_a_checkpoint_s_own_template_is_used(tmp_path: Path) -> None:
    markers = vocabulary("<|im_start|>", "<|im_end|>", size=ROWS - 2)
    checkpoint = open_checkpoint(gguf(tmp_path, markers, **{"tokenizer.chat_template": CHATML}))
    start, end = ROWS - 2, ROWS - 1
    text = [i for i in hello(checkpoint) if i in (start, end)]
    assert text == [start, end, start]


@pytest.mark.parametrize("template", [None, GEMMA])
def test_gemma_s_template_is_the_built_in_one(tmp_path: Path, template: str | None) -> None:
    more = {} if template is None else {"tokenizer.chat_template": template}
    assert isinstance(open_checkpoint(gguf(tmp_path, vocabulary(), **more)).chat, GemmaTemplate)


def test_a_broken_template_is_refused_with_its_line(tmp_path: Path) -> None:
    more = {"tokenizer.chat_template": "\n{% for %}"}
    with pytest.raises(ModelLoadError, match=r"model\.gguf: its chat template, line 2"):
        open_checkpoint(gguf(tmp_path, vocabulary(), **more))
