"""OpenAI's route for embeddings: /v1/embeddings.

The wire format follows openai/openai-python, `types/embedding_create_params.py` and
`resources/embeddings.py`, which asks for base64 whenever its caller asks for nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.embedding import (
    MAX_TEXTS,
    Cut,
    Dimensions,
    EmbeddingJob,
    as_base64,
    check_dimensions,
    encode_texts,
    shortened,
)
from gemma_server.api.errors import prompt_in
from gemma_server.api.job import Costs
from gemma_server.api.openai.schema import TokenIds
from gemma_server.api.operation import Operation
from gemma_server.api.schemas import ForeignBody, Items, ModelBody, PromptText, check_tokens
from gemma_server.engine.embedding import Vector
from gemma_server.serving.model import EmbeddingModel
from gemma_server.serving.models import Models


class EmbeddingsBody(ForeignBody, ModelBody):
    """POST /v1/embeddings."""

    # Fields of other servers that would change the answer, with the values that ask for nothing.
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **dict.fromkeys(("messages", "chat_template", "chat_template_kwargs"), ("", [], {})),
        **dict.fromkeys(("task", "task_type", "input_type", "instruction", "prompt_name"), ("",)),
        **dict.fromkeys(("normalize", "normalized", "add_special_tokens"), (True,)),
        **dict.fromkeys(("late_chunking", "return_multivector"), (False,)),
        "embd_normalize": (2,),  # llama.cpp's number for the length 1
        "embed_dtype": ("float32",),
        "embedding_type": ("float",),
        "output_dtype": ("float",),
        "endianness": ("native", "little"),
        "truncate_prompt_tokens": (),
        "truncation_side": ("right",),
        "output_dimension": (),
        "image": (),
        "images": ([],),
    }

    input: (
        PromptText
        | TokenIds
        | Annotated[Items[PromptText | TokenIds], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    dimensions: Dimensions | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    truncate: bool = False

    @property
    def inputs(self) -> dict[str, str | list[int]]:
        """The texts, or their ids, each under the name of its field."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return {"input": self.input}
        return {f"input[{index}]": each for index, each in enumerate(self.input)}


class Embedding(TypedDict):
    """The embedding of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # base64 of float32, little-endian


class EmbeddingsUsage(TypedDict):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Costs):
    """The answer."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


def embeddings(body: EmbeddingsBody, models: Models, caller: Caller) -> Embeddings:
    """Embed texts."""
    loaded = caller.hold(models.resolve_embedding, body.model)
    dimensions = check_dimensions(body.dimensions, loaded)
    cut = Cut(loaded, truncate=body.truncate)
    ids = _encode(body, loaded, cut, caller)
    job = EmbeddingJob(loaded, ids, models.metrics, caller, body.user)
    vectors = [shortened(vector, dimensions) for vector in job.run()]
    answer: Embeddings = {
        "object": "list",
        "data": [_embedding(index, each, body) for index, each in enumerate(vectors)],
        "model": loaded.name,
        "usage": {"prompt_tokens": job.tokens, "total_tokens": job.tokens},
        "timings": job.stages(),
    }
    if body.truncate:
        answer["truncated_tokens"] = cut.dropped
    return answer


def _encode(
    body: EmbeddingsBody, loaded: EmbeddingModel, cut: Cut, caller: Caller
) -> list[list[int]]:
    """The ids of each text; ids that came are taken as they are."""
    texts = {param: each for param, each in body.inputs.items() if isinstance(each, str)}
    encoded = encode_texts(loaded, list(texts.values()), list(texts), caller, cut)
    found = dict(zip(texts, encoded, strict=True))
    for param, each in body.inputs.items():
        if not isinstance(each, str):
            check_tokens(each, loaded.tokenizer.vocab_size, param)
            with prompt_in(param):
                found[param] = cut.ids(each)
                loaded.engine.check_prompt(len(found[param]))
    return [found[param] for param in body.inputs]


def _embedding(index: int, vector: Vector, body: EmbeddingsBody) -> Embedding:
    as_text = body.encoding_format == "base64"
    numbers = as_base64(vector) if as_text else vector.tolist()
    return {"object": "embedding", "index": index, "embedding": numbers}


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "openai_embeddings",
        "Embed texts",
        embeddings,
        path="/v1/embeddings",
        frame="embed",
        body=EmbeddingsBody,
        answer=Embeddings,
        waits=True,
    ),
)
