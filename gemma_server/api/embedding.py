"""Texts to embeddings: what OpenAI's and Ollama's routes share."""

import base64
import math
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from gemma_server.api import heavy
from gemma_server.api.admission import admitting
from gemma_server.api.caller import Caller
from gemma_server.api.errors import prompt_in
from gemma_server.api.schemas import WHOLE
from gemma_server.api.timing import milliseconds, timed
from gemma_server.engine.embedding import Vector
from gemma_server.errors import DeadlineExceeded, Disconnected, InvalidRequest
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import EmbeddingModel

MAX_TEXTS = 2048  # at once, as at OpenAI
Dimensions = Annotated[int, Field(ge=1, le=1 << 30), WHOLE]
_LOOK_UP_S = 0.2  # how often a waiting handler checks whether its client has disconnected


class EmbeddingJob:
    """The texts of one request, queued together, given up together. `run`, or `cancel`.

    Raises:
        InvalidRequest, PromptRefused, Overloaded, ExceedsRateLimit, DeadlineExceeded,
            GenerationFailed, NotReady: nothing was queued.
    """

    def __init__(
        self,
        loaded: EmbeddingModel,
        texts: Sequence[Sequence[int]],
        metrics: Metrics,
        caller: Caller,
        user: str | None = None,
    ) -> None:
        self._engine, self._metrics, self._caller = loaded.engine, metrics, caller
        self._compilations, self._compiled_s = loaded.compilations, loaded.compilations.seconds
        name, _ = caller.shares_as(user)
        with admitting(loaded, caller, metrics, sum(map(len, texts))):
            self._request = loaded.engine.submit(
                list(map(tuple, texts)), caller.deadline, name, priority=caller.priority
            )
        caller.on_job(self)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self._request.texts))

    def run(self) -> list[Vector]:
        """Wait for all embeddings.

        Raises:
            RequestError: the engine failed, or the deadline passed.
            Disconnected: the client has gone, or has cancelled.
        """
        try:
            while not self._request.wait(self._patience()):
                self._look_up()
        finally:
            self.cancel()
        if self._request.cancelled:
            raise Disconnected
        self._metrics.completed(self.tokens, 0, self._request.timestamps.timings())
        return self._request.vectors

    def cancel(self) -> None:
        """Give up what is not embedded yet; nothing happens if all is."""
        self._engine.cancel(self._request)

    def stages(self) -> dict[str, float]:
        """Milliseconds of each stage up to now, those before the job included."""
        timings = self._request.timestamps.timings()
        return {
            **self._caller.stages,
            "queue_ms": milliseconds(timings.queue_s),
            "embed_ms": milliseconds(timings.prefill_s),
            "compile_ms": milliseconds(self._compilations.seconds - self._compiled_s),
        }

    def _patience(self) -> float:
        if self._caller.deadline is None:
            return _LOOK_UP_S
        return min(_LOOK_UP_S, max(0.0, self._caller.deadline - time.monotonic()))

    def _look_up(self) -> None:
        if self._caller.disconnected():
            raise Disconnected
        if self._caller.deadline is not None and time.monotonic() >= self._caller.deadline:
            raise DeadlineExceeded("the time allowed for this request is over")


def encode_texts(
    loaded: EmbeddingModel, texts: Sequence[str], params: Sequence[str], caller: Caller, cut: "Cut"
) -> list[list[int]]:
    """The ids of each text, `<bos>` and `<eos>` included; an error names the text at fault.

    Raises:
        InvalidPrompt: a text is not valid, or too long.
        Overloaded: too many long texts wait to be encoded.
    """

    def encode_all() -> list[list[int]]:
        encoded = []
        for text, param in zip(texts, params, strict=True):
            with prompt_in(param):
                if cut.room is None:
                    loaded.refuse_what_cannot_fit([text])
                ids = cut.ids(loaded.encode(text))
                loaded.engine.check_prompt(len(ids))
            encoded.append(ids)
        return encoded

    with timed(caller.stages, "tokenize"):
        return heavy.run(sum(map(len, texts)), encode_all)


class Cut:
    """Drops the end of texts that do not fit, if that is allowed, and counts the tokens dropped."""

    def __init__(self, loaded: EmbeddingModel, *, truncate: bool) -> None:
        self.room = loaded.context_length if truncate else None
        self.dropped = 0

    def ids(self, ids: list[int]) -> list[int]:
        """The first ids that fit, and the last one, which is `<eos>`."""
        if self.room is None or len(ids) <= self.room:
            return ids
        self.dropped += len(ids) - self.room
        return [*ids[: self.room - 1], ids[-1]]


def check_dimensions(dimensions: int | None, loaded: EmbeddingModel) -> int:
    """How many numbers of each embedding are wanted.

    Raises:
        InvalidRequest: more than it has.
    """
    if dimensions is not None and dimensions > loaded.width:
        raise InvalidRequest(
            f"dimensions: {loaded.name} makes embeddings of {loaded.width} numbers",
            param="dimensions",
        )
    return dimensions or loaded.width


def shortened(vector: Vector, dimensions: int) -> Vector:
    """The first numbers of an embedding, divided by their length: the models were trained so that
    these are an embedding of their own (Matryoshka)."""
    if dimensions == len(vector):
        return vector
    part = vector[:dimensions]
    length = math.hypot(*part) or 1.0
    return array("f", [number / length for number in part])


def as_base64(vector: Vector) -> str:
    """The numbers as float32 in little-endian order, which OpenAI's clients ask for unasked."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector).decode()
