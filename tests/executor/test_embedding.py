"""The compiled programs of a model that embeds texts."""

from pathlib import Path

import numpy as np
import pytest

from gemma_server.engine.embedding import Tokens, Vector
from gemma_server.executor.compile_cache import CompileCache
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.executor.dispatch_policy import ON_CPU, ON_GPU, DispatchPolicy
from gemma_server.executor.embedding import EmbeddingPrograms, JaxEmbeddingRunner, lengths_for
from gemma_server.private_directory import PrivateDirectory
from testing.embedding import TOLERANCE, embedding_model, read_golden

NAME = "embedding"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


def make(folder: Path, policy: DispatchPolicy, context_length: int) -> JaxEmbeddingRunner:
    config, params = embedding_model(NAME)
    programs = EmbeddingPrograms(
        config, context_length=context_length, dtype=np.dtype(np.float32), policy=policy
    )
    cache = CompileCache(PrivateDirectory(folder), programs.configuration)
    programs.compile(lambda share: None, cache)
    counter = CompileCounter()
    runner = JaxEmbeddingRunner(programs, params, counter)
    runner.warm_up()
    assert counter.programs == 0
    return runner


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> JaxEmbeddingRunner:
    return make(folder, ON_CPU, 64)


def texts_of(length: int) -> list[tuple[Tokens, Vector]]:
    return [(tuple(ids), vector) for ids, vector in read_golden(NAME) if len(ids) <= length]  # type: ignore[misc]


def test_the_lengths_are_few_and_end_with_the_context() -> None:
    assert lengths_for(2048) == (16, 32, 64, 128, 256, 512, 1024, 2048)
    assert lengths_for(100) == (16, 32, 64, 100)
    assert lengths_for(300) == (16, 32, 64, 128, 256, 512)
    assert lengths_for(1) == lengths_for(16) == (16,)
    assert all(length % 256 == 0 for length in lengths_for(3000) if length > 256)


def test_a_step_agrees_with_the_library(on_cpu: JaxEmbeddingRunner) -> None:
    texts = texts_of(64)
    found = on_cpu.embed([ids for ids, _ in texts], 64)
    expected = np.array([vector for _, vector in texts])
    np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=TOLERANCE)


def test_a_text_s_bits_do_not_depend_on_those_beside_it(on_cpu: JaxEmbeddingRunner) -> None:
    texts = [ids for ids, _ in texts_of(64)]
    together = on_cpu.embed(texts, 64)
    assert len(texts) > 6
    for ids, vector in zip(texts, together, strict=True):
        assert on_cpu.embed([ids], 64) == [vector]
    assert on_cpu.embed(texts[::-1], 64) == together[::-1]


def test_on_a_gpu_many_texts_are_embedded_side_by_side(folder: Path) -> None:
    runner = make(folder, ON_GPU, 16)
    assert runner.rows(16) == 64
    texts = texts_of(16)
    for some in (texts, texts[:1]):
        found = runner.embed([ids for ids, _ in some], 16)
        expected = np.array([vector for _, vector in some])
        np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=TOLERANCE)


def test_a_step_has_few_tokens_on_a_cpu(on_cpu: JaxEmbeddingRunner) -> None:
    assert [on_cpu.rows(length) for length in (16, 64, 512, 2048)] == [32, 8, 1, 1]
