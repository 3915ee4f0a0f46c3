"""Servers on the fake engine for real clients: it repeats the prompt, one token per byte."""

from collections.abc import Iterator

import pytest

from testing.embedding import write_embedding_hf
from testing.server import SERVE, Server, serve_gemma4, serve_slowly


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that answers at once."""
    yield from _serve(Server(tmp_path_factory.mktemp("server"), SERVE))


@pytest.fixture(scope="package")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One slot, a line of one, 50 ms a token."""
    flags = ("--slots", "1", "--max-queue", "1")
    yield from _serve(Server(tmp_path_factory.mktemp("slow"), serve_slowly(0.05, *flags)))


@pytest.fixture(scope="package")
def embedding_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny real model that embeds texts, under the name that the docs use."""
    env = {
        "MODEL_CHECKPOINT": str(write_embedding_hf(tmp_path_factory.mktemp("hf"), "embedding")),
        "GEMMA_MODEL_NAME": "embeddinggemma-300m",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    args = ("-m", "gemma_server", "serve", "--port", "0", "--context-length", "64")
    yield from _serve(Server(tmp_path_factory.mktemp("embedding"), args, env))


@pytest.fixture(scope="package")
def tools_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that thinks, calls a tool twice, and then says what it saw."""
    call = '<|tool_call>call:look{at:<|"|>a "wall"<|"|>}<tool_call|>'
    says = f"<|channel>thought\nHm.\n<channel|>I look. {call}{call}<|tool_response>"
    program = serve_gemma4(says, "<channel|>I saw it.<turn|>")
    yield from _serve(Server(tmp_path_factory.mktemp("tools"), program))


def _serve(server: Server) -> Iterator[Server]:
    try:
        yield server.wait_ready()
    finally:
        server.end()
