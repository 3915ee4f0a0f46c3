"""The real Gemma 3 270M for tests: one load shared by all of them."""

from dataclasses import dataclass
from pathlib import Path

from gemma_server.build import load_model
from gemma_server.engine.engine import Engine
from gemma_server.engine.request import Finished, Handle, Request, SamplingOptions, Token
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.settings import Settings, default_cache_dir, load_settings
from gemma_server.text.tokenizer import Tokenizer


@dataclass
class RealModel:
    """The loaded model and shortcuts to it."""

    settings: Settings
    loaded: LoadedModel

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.tokenizer

    @property
    def engine(self) -> Engine:
        return self.loaded.engine

    def submit(self, text: str, steps: int, sampling: SamplingOptions | None = None) -> Handle:
        ids = tuple(self.tokenizer.encode(text))
        options = sampling or SamplingOptions()
        [handle] = self.engine.submit([Request(ids, steps, options, self.tokenizer.stop_ids)])
        return handle

    def read(self, handle: Handle) -> list[int]:
        ids: list[int] = []
        while True:
            event = handle.next_event(120)
            if isinstance(event, Token):
                ids.append(event.id)
            else:
                assert isinstance(event, Finished), event
                return ids

    def generate(self, text: str, steps: int, sampling: SamplingOptions | None = None) -> str:
        return self.tokenizer.decode(self.read(self.submit(text, steps, sampling)))


def load_real_model(cache_dir: Path | None = None) -> RealModel:
    """Load the demo model with the default settings."""

    def fail(error: BaseException) -> None:
        raise error

    settings = load_settings(cache_dir=cache_dir or default_cache_dir())
    model = ServedModel("real")
    load_model(settings, model, fail)
    return RealModel(settings, model.require_ready())
