"""An embedding model without weights: what it makes of a text can be told from the text."""

import threading
import time
from array import array
from collections.abc import Callable, Sequence

from gemma_server.engine.embedding import EmbeddingEngine, EmbeddingLimits, Tokens, Vector
from gemma_server.engine.fake import fake_tokenizer
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.serving.model import EmbeddingModel

WIDTH = 4


def fake_vector(ids: Sequence[int]) -> Vector:
    """Of length 1, and another one for other ids."""
    numbers = array("f", [len(ids), sum(ids), ids[len(ids) // 2], 1.0])
    length = sum(number * number for number in numbers) ** 0.5
    return array("f", [number / length for number in numbers])


class FakeEmbeddingRunner:
    """Remembers its steps. Tests can hold it back by `open`; step number `fail_at` raises."""

    def __init__(self, *, rows: int = 4, step_s: float = 0.0, fail_at: int | None = None) -> None:
        self.lengths = (8, 32, 256)
        self._rows, self._step_s, self._fail_at = rows, step_s, fail_at
        self.steps: list[tuple[int, list[Tokens]]] = []
        self.open = threading.Event()
        self.open.set()
        self.broken: set[Tokens] = set()  # texts of which no finite number comes

    def rows(self, length: int) -> int:
        """As many of each length."""
        return self._rows

    def embed(self, texts: Sequence[Tokens], length: int) -> list[Vector]:
        """The embedding of each text."""
        self.steps.append((length, list(texts)))
        self.open.wait()
        time.sleep(self._step_s)
        if len(self.steps) == self._fail_at:
            raise RuntimeError(f"told to fail at step {self._fail_at}")
        nothing = array("f", [float("nan")] * WIDTH)
        return [nothing if text in self.broken else fake_vector(text) for text in texts]


def fake_embedding_model(
    runner: FakeEmbeddingRunner,
    on_death: Callable[[BaseException], None],
    limits: EmbeddingLimits | None = None,
) -> EmbeddingModel:
    """A started model on this runner."""
    engine = EmbeddingEngine(runner, limits or EmbeddingLimits(256, 4, 1000), on_death)
    engine.start()
    fixed = ("fake", fake_tokenizer(), "none", 0.0, CompileCounter())
    return EmbeddingModel(*fixed, engine=engine, width=WIDTH)
