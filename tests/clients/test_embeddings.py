"""The official clients for embeddings, unmodified, against a server with a tiny real model."""

import asyncio
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import ollama
import openai
import pytest

from gemma_server.text.tokenizer import Tokenizer
from testing.embedding import TOLERANCE, oracle_embedding, tokenizer_of
from testing.server import Server

pytestmark = pytest.mark.slow

NAME, MODEL = "embedding", "embeddinggemma-300m"
TEXTS = ["a cat", "a dog that is longer than the window of a layer", "", "é"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of(NAME)


def expected(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return oracle_embedding(NAME, [*tokenizer.encode(text), tokenizer.eos_id])


def assert_is(found: Sequence[float], tokenizer: Tokenizer, text: str) -> None:
    np.testing.assert_allclose(found, expected(tokenizer, text), rtol=0, atol=TOLERANCE)


def test_openai_s_client_which_asks_for_base64_unasked(
    embedding_server: Server, tokenizer: Tokenizer
) -> None:
    texts = [text for text in TEXTS if text]
    base_url = f"http://127.0.0.1:{embedding_server.port}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=MODEL, input=texts)
        for text, one in zip(texts, answer.data, strict=True):
            assert_is(one.embedding, tokenizer, text)
        assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) + 1 for text in texts)
        floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
        assert [one.embedding for one in floats.data] == [one.embedding for one in answer.data]
        [short] = client.embeddings.create(model=MODEL, input="a cat", dimensions=8).data
        whole = expected(tokenizer, "a cat")[:8]
        np.testing.assert_allclose(short.embedding, whole / np.linalg.norm(whole), atol=TOLERANCE)
        with pytest.raises(openai.BadRequestError, match="does not generate"):
            client.completions.create(model=MODEL, prompt="a")


def test_many_clients_at_once_get_the_very_same_numbers_as_one(
    embedding_server: Server, tokenizer: Tokenizer
) -> None:
    base_url = f"http://127.0.0.1:{embedding_server.port}/v1"
    texts = [f"{'word ' * (index % 9)}{index}" for index in range(48)]

    async def ask(parallel: int) -> list[list[float]]:
        gate = asyncio.Semaphore(parallel)
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:

            async def one(text: str) -> list[float]:
                async with gate:
                    answer = await client.embeddings.create(model=MODEL, input=text)
                    return answer.data[0].embedding

            return list(await asyncio.gather(*map(one, texts)))

    together = asyncio.run(ask(24))
    assert together == asyncio.run(ask(1))
    for text, vector in zip(texts, together, strict=True):
        assert_is(vector, tokenizer, text)


def test_ollama_s_client(embedding_server: Server, tokenizer: Tokenizer) -> None:
    with closing(ollama.Client(host=f"http://127.0.0.1:{embedding_server.port}")) as client:
        _ask(client, tokenizer)


def _ask(client: ollama.Client, tokenizer: Tokenizer) -> None:
    answer = client.embed(MODEL, TEXTS)
    for text, vector in zip(TEXTS, answer.embeddings, strict=True):
        assert_is(vector, tokenizer, text)
    assert len(client.embed(MODEL, "a cat", dimensions=8).embeddings[0]) == 8
    assert_is(client.embeddings(MODEL, "a cat").embedding, tokenizer, "a cat")
    assert client.show(MODEL).capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError, match="does not generate"):
        client.generate(MODEL, "a")
    long = "word " * 100
    with pytest.raises(ollama.ResponseError, match="context length"):
        client.embed(MODEL, long)
    assert client.embed(MODEL, long, truncate=True).embeddings
