"""Every operation of the server. Flask's routes, frames, the OpenAPI document and the docs' tests
are made from this list."""

from typing import Any

from gemma_server.api import status
from gemma_server.api.inference_protocol import generate, infer, repository, server
from gemma_server.api.native import handlers as native
from gemma_server.api.native import models as native_models
from gemma_server.api.ollama import embeddings as ollama_embeddings
from gemma_server.api.ollama import handlers as ollama
from gemma_server.api.openai import embeddings as openai_embeddings
from gemma_server.api.openai import handlers as openai
from gemma_server.api.openai import tokens
from gemma_server.api.operation import Operation
from gemma_server.api.tensorflow import handlers as tensorflow

OPERATIONS: tuple[Operation[Any], ...] = (
    *native.OPERATIONS,
    *native_models.OPERATIONS,
    *openai.OPERATIONS,
    *tokens.OPERATIONS,
    *openai_embeddings.OPERATIONS,
    *ollama.OPERATIONS,
    *ollama_embeddings.OPERATIONS,
    *tensorflow.OPERATIONS,
    *server.OPERATIONS,
    *infer.OPERATIONS,
    *generate.OPERATIONS,
    *repository.OPERATIONS,
    *status.OPERATIONS,
)
