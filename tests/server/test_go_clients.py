"""The unmodified Go clients for OpenAI and Ollama, against servers with the fake model."""

import os
import subprocess
from pathlib import Path

import pytest

from testing.server import SERVE, free_port, serve_slowly, serve_when
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[2]
_NAMED = ("--model-name", "fake")


def _go(
    *args: str, timeout_s: float, module: str = "clients/compat", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run go in a module; its caches are the user's, so that it downloads once."""
    return subprocess.run(
        [_ROOT / "scripts/go.sh", "-C", module, *args],
        cwd=_ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_fake_server_of_go_tests_answers_as_the_real_one(start: Start) -> None:
    server = start(*SERVE)
    tests = _go(
        *("test", "-count=1", "./gemmatest"),
        module="clients/go",
        timeout_s=600,
        GEMMA_TEST_URL=f"http://127.0.0.1:{server.port}",
    )
    assert tests.returncode == 0, tests.stdout


@pytest.fixture(scope="module")
def _modules() -> None:
    """The clients themselves, from Go's module proxy or the cache."""
    try:
        done = _go("mod", "download", timeout_s=300)
        failure = done.stdout if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        failure = str(error)
    if failure:
        reason = f"`go mod download` in clients/compat failed, so no Go clients here:\n{failure}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.usefixtures("_modules")
def test_the_go_clients_are_served(start: Start, tmp_path: Path) -> None:
    fast = start(*SERVE, *_NAMED)
    slow = start(*serve_slowly(0.05, *_NAMED, "--slots", "1", "--max-queue", "1"))
    gate, port = tmp_path / "gate", free_port()
    loading = start(*serve_when(gate, port), *_NAMED, port=port)
    tests = _go(
        *("test", "-count=1", "-v", "./..."),
        timeout_s=600,
        GEMMA_COMPAT_URL=f"http://127.0.0.1:{fast.port}",
        GEMMA_COMPAT_SLOW_URL=f"http://127.0.0.1:{slow.port}",
        GEMMA_COMPAT_LOADING_URL=f"http://127.0.0.1:{loading.port}",
        GEMMA_COMPAT_LOADING_GATE=str(gate),
    )
    print(tests.stdout)
    assert tests.returncode == 0, tests.stdout
    assert "--- PASS: TestOpenAI_Chat" in tests.stdout
    assert "--- SKIP" not in tests.stdout
