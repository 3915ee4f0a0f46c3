"""Ollama's routes for embeddings: /api/embed, and the older /api/embeddings.

The wire format follows ollama/ollama's `api/types.go` and `server/routes.go`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.embedding import (
    MAX_TEXTS,
    Cut,
    EmbeddingJob,
    check_dimensions,
    encode_texts,
    shortened,
)
from gemma_server.api.errors import MESSAGE_ALONE
from gemma_server.api.job import Costs
from gemma_server.api.ollama.answers import Durations, durations, nanoseconds
from gemma_server.api.ollama.keep_alive import KeptBody
from gemma_server.api.ollama.schema import check_num_ctx
from gemma_server.api.operation import Operation
from gemma_server.api.schemas import WHOLE, ForeignBody, Items, ModelBody
from gemma_server.serving.model import EmbeddingModel
from gemma_server.serving.models import Models

Count = Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE]


class EmbedOptions(ForeignBody):
    """Options that only tune Ollama's runner, or how it samples, are ignored."""

    WITHIN: ClassVar[str] = "options."

    num_ctx: Count = 0


class _EmbedBody(ForeignBody, ModelBody, KeptBody):
    model: Annotated[str, Field(min_length=1)]
    options: EmbedOptions = EmbedOptions()


class EmbedBody(_EmbedBody):
    """POST /api/embed."""

    input: str | Annotated[Items[str], Field(max_length=MAX_TEXTS)] = ""
    truncate: bool = False  # Ollama's default is true: it truncates without notice
    dimensions: Annotated[int, Field(ge=0, le=1 << 30), WHOLE] = 0  # 0: all, as at Ollama

    @property
    def inputs(self) -> dict[str, str]:
        """The texts, each under the name of its field; an empty string is none."""
        if isinstance(self.input, str):
            return {"input": self.input} if self.input else {}
        return {f"input[{index}]": text for index, text in enumerate(self.input)}


class PromptEmbeddingBody(_EmbedBody):
    """POST /api/embeddings."""

    prompt: str = ""


class Embedded(Durations, Costs):
    """The answer of /api/embed."""

    model: str
    embeddings: list[list[float]]
    prompt_eval_count: int


class PromptEmbedding(TypedDict):
    """The answer of /api/embeddings."""

    embedding: list[float]


def embed(body: EmbedBody, models: Models, caller: Caller) -> Embedded:
    """Embed texts; without any, load the model or unload it."""
    if not body.inputs and body.unload(models):
        return _embedded(body, [], 0, caller.stages)
    loaded = caller.hold(models.resolve_embedding, body.model)
    body.keep(models)
    dimensions = check_dimensions(body.dimensions or None, loaded)
    cut = Cut(loaded, truncate=body.truncate)
    job = _job(body, body.inputs, loaded, models, caller, cut)
    if job is None:
        answer = _embedded(body, [], 0, caller.stages)
    else:
        vectors = [shortened(vector, dimensions).tolist() for vector in job.run()]
        answer = _embedded(body, vectors, job.tokens, job.stages())
    if body.truncate:
        answer["truncated_tokens"] = cut.dropped
    return answer


def embed_prompt(body: PromptEmbeddingBody, models: Models, caller: Caller) -> PromptEmbedding:
    """Embed one text; without it, load the model or unload it."""
    if not body.prompt and body.unload(models):
        return {"embedding": []}
    loaded = caller.hold(models.resolve_embedding, body.model)
    body.keep(models)
    texts = {"prompt": body.prompt} if body.prompt else {}
    job = _job(body, texts, loaded, models, caller, Cut(loaded, truncate=False))
    return {"embedding": [] if job is None else job.run()[0].tolist()}


def _embedded(
    body: EmbedBody, vectors: list[list[float]], tokens: int, stages: Mapping[str, float]
) -> Embedded:
    sums = durations(nanoseconds(stages))
    return {
        "model": body.model,
        "embeddings": vectors,
        "total_duration": sums["total_duration"],
        "load_duration": sums["load_duration"],
        "prompt_eval_count": tokens,
        "timings": {**stages},
    }


def _job(
    body: _EmbedBody,
    texts: Mapping[str, str],
    loaded: EmbeddingModel,
    models: Models,
    caller: Caller,
    cut: Cut,
) -> EmbeddingJob | None:
    """None without a text."""
    check_num_ctx(body.options.num_ctx, loaded.context_length)
    if texts:
        ids = encode_texts(loaded, list(texts.values()), list(texts), caller, cut)
        return EmbeddingJob(loaded, ids, models.metrics, caller)
    return None


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "ollama_embed",
        "Embed texts",
        embed,
        path="/api/embed",
        body=EmbedBody,
        answer=Embedded,
        waits=True,
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "ollama_embeddings",
        "Embed one text, by Ollama's older name",
        embed_prompt,
        path="/api/embeddings",
        body=PromptEmbeddingBody,
        answer=PromptEmbedding,
        waits=True,
        error_form=MESSAGE_ALONE,
    ),
)
