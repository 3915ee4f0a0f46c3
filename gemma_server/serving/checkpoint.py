"""A checkpoint to serve: weights, the tokenizer that fits them, and the architecture."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.text.chat_template import ChatTemplate, GemmaTemplate
from gemma_server.text.family import GEMMA4
from gemma_server.text.gemma4_template import Gemma4Template
from gemma_server.text.jinja_template import JinjaTemplate, is_gemma_s
from gemma_server.text.sentencepiece_model import model_from_pieces, without_last
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.text.tokenizer_json import model_from_json
from gemma_server.weights.files import INCOMPLETE, read_file
from gemma_server.weights.gguf.gemma import GgufWeights
from gemma_server.weights.open import open_weights
from gemma_server.weights.sampling_defaults import SamplingDefaults
from gemma_server.weights.source import WeightSource, check

logger = logging.getLogger(__name__)

# Embedding tables may have a few rows more than the tokenizer has pieces: Kaggle's Gemma 1 and 2
# have 128, Hugging Face's larger Gemma 3 have 64.
_PADDING_ROWS, _USUAL_PADDING = 256, (0, 64, 128)
_MOST_TOKENIZER_BYTES = 64 << 20  # Gemma 3's tokenizer.json has 33 MB
# The first wins: it is what transformers reads, and where a fine-tune's added tokens are saved. A
# tokenizer.model beside it is often the original's.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_MOST_LEFT_OUT = 64  # control tokens without a row of the embedding


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; no weight has been read yet."""

    weights: WeightSource
    config: GemmaConfig  # its vocabulary is the tokenizer's, without the table's padding
    tokenizer: Tokenizer
    chat: ChatTemplate
    tokenizer_model: bytes  # SentencePiece's serialised form
    tokenizer_from: Path

    @property
    def sampling(self) -> SamplingDefaults:
        """How its files say that its answers are best sampled. Nothing applies it by itself."""
        return self.weights.sampling


def open_checkpoint(path: Path, tokenizer: Path | None = None) -> Checkpoint:
    """Open the checkpoint at `path` with its own tokenizer, or the one given. Imports no jax.

    Raises:
        ModelLoadError: one of them is missing or damaged, or they do not belong together.
    """
    weights = open_weights(path)
    check(weights)
    where, model = _tokenizer_model(weights, tokenizer)
    try:
        opened = Tokenizer(model, declared_stops=weights.stop_ids)
    except ModelLoadError as error:
        raise ModelLoadError(f"{where}: {error}; {INCOMPLETE}") from None
    rows, pieces = weights.config.vocab, opened.vocab_size
    if rows < pieces <= rows + _MOST_LEFT_OUT:
        model = _left_out(where, model, rows)
        opened = Tokenizer(model, declared_stops=weights.stop_ids)
        pieces = rows
    if not pieces <= rows <= pieces + _PADDING_ROWS:
        raise ModelLoadError(
            f"the tokenizer {where} has {pieces} pieces, but {weights.path} embeds {rows}: they do "
            f"not belong together{_hint(where)}"
        )
    if rows - pieces not in _USUAL_PADDING:
        logger.warning(
            "%d rows of the embedding have no token in %s%s", rows - pieces, where, _hint(where)
        )
    chat = _chat_template(weights, opened)
    suppressed = tuple(sorted(token for token in weights.suppressed_ids if token < pieces))
    config = replace(weights.config, vocab=pieces, suppressed=suppressed)
    return Checkpoint(weights, config, opened, chat, model, where)


def _chat_template(weights: WeightSource, tokenizer: Tokenizer) -> ChatTemplate:
    """The checkpoint's own template, or Gemma's where it has none or one that does the same."""
    gemma_s: ChatTemplate = GemmaTemplate(tokenizer)
    if tokenizer.family is GEMMA4:
        is_small = weights.config.per_layer_width is not None
        gemma_s = Gemma4Template(tokenizer, opens_thought=not is_small)
    if weights.chat_template is None:
        return gemma_s
    try:
        own = JinjaTemplate(weights.chat_template, tokenizer)
    except ModelLoadError as error:
        raise ModelLoadError(f"{weights.path}: {error}") from None
    if is_gemma_s(own, gemma_s):
        return gemma_s
    logger.info("%s: its own chat template is used, which is not Gemma's", weights.path)
    return own


def _left_out(where: Path, model: bytes, rows: int) -> bytes:
    """The model without the control tokens that it has beyond the embedding's last row: those of
    images, in a text model's files."""
    try:
        model, names = without_last(model, rows)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{where}: {error}, of {rows} rows: they do not belong together"
        ) from None
    logger.info("%s: without %s, which the embedding has no rows for", where, ", ".join(names))
    return model


def _hint(tokenizer: Path) -> str:
    """The other of the two files, if that is there too."""
    others = (tokenizer.with_name(name) for name in _TOKENIZER_FILES if name != tokenizer.name)
    found = next((other for other in others if other.is_file()), None)
    return f"; try MODEL_TOKENIZER={found}" if found else ""


def _tokenizer_model(weights: WeightSource, given: Path | None) -> tuple[Path, bytes]:
    """Where the tokenizer is, and its SentencePiece model."""
    if given is None and isinstance(weights, GgufWeights):
        return weights.path, model_from_pieces(*weights.tokenizer_pieces)
    path = given or _tokenizer_beside(weights.path)
    data = read_file(path, _MOST_TOKENIZER_BYTES)
    if path.suffix != ".json":
        return path, data
    try:
        return path, model_from_json(data)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}{_hint(path)}") from None


def _tokenizer_beside(path: Path) -> Path:
    """The tokenizer in the checkpoint's directory, else the one next to it, as Kaggle has it."""
    for directory in (path, path.parent):
        for name in _TOKENIZER_FILES:
            if (directory / name).is_file():
                return directory / name
    raise ModelLoadError(
        f"{path} brings no tokenizer: set MODEL_TOKENIZER to its tokenizer.model or tokenizer.json"
    )
