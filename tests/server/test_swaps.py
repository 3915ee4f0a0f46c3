"""Versions of real models that come and go under load, each told apart by what it answers."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemma_server.text.sentencepiece_model import model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from testing.counts import is_long
from testing.oracle import gemma as oracle
from testing.oracle.gemma import PRESETS
from testing.server import Server, version_states
from testing.tiny import tiny_pieces, tiny_weights, write_gguf
from testing.waiting import wait_until
from tests.server.conftest import Start
from tests.server.test_checkpoints import COMPILED_SOON

NAME, PROMPT, STEPS = "gemma1-mqa", "Which version is this?", 8
LONG_S = 30.0
SERVE_VERSIONS = (
    *("-m", "gemma_server", "serve", "--port", "0", "--dtype", "float32"),
    *("--slots", "1", "--context-length", "96", "--model-poll-seconds", "0.2"),
)


def expected(number: int) -> str:
    """What the oracle says that this version answers, which does not end early."""
    tokenizer = Tokenizer(model_from_pieces(*tiny_pieces(PRESETS[NAME].vocab)))
    weights = tiny_weights(NAME, seed=number)
    ids = oracle.greedy(PRESETS[NAME], weights, tokenizer.encode(PROMPT), STEPS)
    assert not tokenizer.stop_ids & set(ids)
    return tokenizer.decode(ids)


def publish(base: Path, number: int) -> None:
    """Write a version aside, and rename it into place."""
    base.mkdir(exist_ok=True)
    aside = base.parent / f"{number}.new"
    aside.mkdir()
    write_gguf(aside / "model.gguf", NAME, tiny_weights(NAME, seed=number))
    aside.rename(base / str(number))


Told = tuple[str, str]  # the version of an answer, and its text


def ask_whole(server: Server) -> Told:
    answer = server.prompt(PROMPT, sampling_steps=STEPS)
    assert answer.status == 200, answer.body
    assert answer.json["model_version"] == answer.headers["X-Model-Version"]
    return answer.json["model_version"], answer.json["response"]


def ask_for_a_stream(server: Server) -> Told:
    stream = server.stream(PROMPT, sampling_steps=STEPS)
    return stream.headers["X-Model-Version"], stream.text()


def ask_as_openai(server: Server) -> Told:
    body = {"prompt": PROMPT, "max_tokens": STEPS, "temperature": 0}
    answer = server.ask("POST", "/v1/completions", body)
    assert answer.status == 200, answer.body
    return answer.headers["X-Model-Version"], answer.json["choices"][0]["text"]


def ask_as_ollama(server: Server) -> Told:
    options = {"temperature": 0, "num_predict": STEPS, "repeat_penalty": 1}
    body = {"model": "m", "prompt": PROMPT, "raw": True, "stream": False, "options": options}
    answer = server.ask("POST", "/api/generate", body)
    assert answer.status == 200, answer.body
    return answer.headers["X-Model-Version"], answer.json["response"]


CLIENTS = (ask_whole, ask_for_a_stream, ask_as_openai, ask_as_ollama)


class Load:
    """Clients that ask without a pause, each in its own dialect."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ends = threading.Event()
        self.answers: list[Told] = []
        self.pool = ThreadPoolExecutor(len(CLIENTS))
        self._clients = [self.pool.submit(self._ask, each) for each in CLIENTS]

    def _ask(self, client: Callable[[Server], Told]) -> None:
        while not self._ends.is_set():
            self.answers.append(client(self._server))

    def is_answered_by(self, version: str) -> bool:
        """Whether the newest answers are of this version."""
        for client in self._clients:
            if client.done():
                client.result()
        return {number for number, _ in self.answers[-2 * len(CLIENTS) :]} == {version}

    def end(self) -> None:
        """Stop; raises what a client has seen."""
        self._ends.set()
        for client in self._clients:
            client.result()


@pytest.mark.slow
def test_nothing_is_lost_while_versions_change(start: Start, tmp_path: Path) -> None:
    base = tmp_path / "m"
    publish(base, 1)
    server = start(*SERVE_VERSIONS, "--model-base-path", str(base), env=COMPILED_SOON)
    load = Load(server)

    def answered_by(version: str) -> Callable[[], bool]:
        return lambda: load.is_answered_by(version)

    began = time.monotonic()
    wait_until(answered_by("1"), 60)
    publish(base, 2)
    wait_until(answered_by("2"), 60)
    wait_until(lambda: version_states(server, "m") == {"2": "AVAILABLE", "1": "END"}, 20)

    # A broken version changes nothing, and says why.
    (base / "3").mkdir()
    (base / "3" / "model.gguf").write_bytes((base / "2" / "model.gguf").read_bytes()[:-5000])
    wait_until(lambda: version_states(server, "m").get("3") == "END", 60)
    [told] = server.ask("GET", "/v1/models/m/versions/3").json["model_version_status"]
    assert "model.gguf" in told["status"]["error_message"]
    assert "m version 3 cannot be loaded" in server.stderr
    assert load.is_answered_by("2")

    # A version whose own prompts it cannot answer is broken, too.
    publish(base, 4)
    (base / "4" / "warmup.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "top_q": 1}\n')
    wait_until(lambda: version_states(server, "m").get("4") == "END", 60)
    [told] = server.ask("GET", "/v1/models/m/versions/4").json["model_version_status"]
    assert "warmup.jsonl, line 2" in told["status"]["error_message"]
    assert load.is_answered_by("2")

    # It is tried again once its files are others.
    (base / "4" / "warmup.jsonl").write_text('{"prompt": "a"}\n')
    wait_until(answered_by("4"), 60)

    # Back to 2, then the directory is gone, which takes nothing away.
    shutil.rmtree(base / "3")
    shutil.rmtree(base / "4")
    wait_until(answered_by("2"), 60)
    base.rename(tmp_path / "elsewhere")
    failures = "gemma_source_poll_failures_total"
    wait_until(lambda: server.metrics()[failures] > 2, 20)
    while is_long() and time.monotonic() - began < LONG_S:
        assert load.is_answered_by("2")
        time.sleep(1.0)
    assert load.is_answered_by("2")
    load.end()

    texts = {number: expected(int(number)) for number in ("1", "2", "4")}
    assert len(set(texts.values())) == 3
    assert {number for number, _ in load.answers} == set(texts)
    assert all(texts[number] == text for number, text in load.answers)
    metrics = server.metrics()
    assert metrics['gemma_model_loads_total{model="m",result="available"}'] == 4
    assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_two_models_that_do_not_fit_together_take_turns(start: Start, tmp_path: Path) -> None:
    for number in (1, 2):
        publish(tmp_path / f"m{number}", number)
    (tmp_path / "models.toml").write_text(
        '[models.m1]\nbase_path = "m1"\n[models.m2]\nbase_path = "m2"\nload = "request"\n'
    )
    flags = (
        *("--model-config-file", str(tmp_path / "models.toml")),
        *("--cache-dir", str(tmp_path / "cache")),  # after the first it is known what both need
    )
    env = COMPILED_SOON | {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # programs come from our own
    first = start(*SERVE_VERSIONS, *flags, env=env)
    needs = first.ask("GET", "/models").json["memory"]["booked_bytes"]
    first.end()
    limit = ("--memory-limit", str(int(1.6 * needs)))
    server = start(*SERVE_VERSIONS, *flags, *limit, env=env)

    def ask(number: int) -> str:
        answer = server.prompt(PROMPT, sampling_steps=STEPS, model=f"m{number}")
        assert answer.status == 200, answer.body
        text: str = answer.json["response"]
        return text

    texts = {number: expected(number) for number in (1, 2)}
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert {number: ask(number) for number in (1, 2)} == texts
            both = [1, 2, 1, 2]
            assert list(pool.map(ask, both)) == [texts[number] for number in both]
    metrics = server.metrics()
    assert metrics['gemma_model_dismissals_total{model="m1",reason="evicted"}'] >= 2
    memory = server.ask("GET", "/models").json["memory"]
    assert memory == {"booked_bytes": needs, "limit_bytes": int(1.6 * needs)}
