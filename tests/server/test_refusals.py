"""What the server refuses to start with: one clear line, and the code that says why."""

import socket
from pathlib import Path

import pytest

from testing.server import (
    SERVE,
    assert_refused,
    run,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (("--host", "0.0.0.0"), {}, ("--host", "0.0.0.0", "--api-key-file")),
        ((), {"GEMMA_HOST": "0.0.0.0"}, ("--host", "0.0.0.0", "--api-key-file")),
        (("--host", "::"), {}, ("--host", "--api-key-file")),
        (("--host", "gemma.example"), {}, ("gemma.example", "--api-key-file")),
        (("--port", "70000"), {}, ("--port", "GEMMA_PORT", "65535")),
        (("--port", "http"), {}, ("--port", "GEMMA_PORT")),
        ((), {"GEMMA_PORT": "-1"}, ("--port", "GEMMA_PORT")),
        (("--slots", "0"), {}, ("--slots", "GEMMA_SLOTS")),
        (("--context-length", "1"), {}, ("--context-length", "GEMMA_CONTEXT_LENGTH")),
        (("--max-queue", "1e3"), {}, ("--max-queue", "GEMMA_MAX_QUEUE")),
        (("--max-steps", "0"), {}, ("--max-steps", "GEMMA_MAX_STEPS")),
        (("--drain-timeout", "0"), {}, ("--drain-timeout", "GEMMA_DRAIN_TIMEOUT")),
        ((), {"GEMMA_DTYPE": "int4"}, ("--dtype", "GEMMA_DTYPE")),
        ((), {"GEMMA_FAKE": "maybe"}, ("--fake", "GEMMA_FAKE")),
        (("--dtype", "int4"), {}, ("--dtype",)),
        (("--nope",), {}, ("No such option", "--nope")),
        (("--api-key-file", "/no/such/file"), {}, ("--api-key-file", "/no/such/file")),
        (("--api-key-file", "/dev/null"), {}, ("--api-key-file", "/dev/null")),
        (("--api-key-file", "/"), {}, ("--api-key-file",)),
        (("--slots", "0", "--port", "-1"), {}, ("--slots", "--port")),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_and_code_2(
    home: Path, flags: tuple[str, ...], env: dict[str, str], words: tuple[str, ...]
) -> None:
    args = ("-m", "gemma_server", "serve", *flags)
    result = run(home, args, {"GEMMA_FAKE": "1", "GEMMA_PORT": "0", **env})
    assert_refused(result.returncode, 2, result.stderr, *words)
    assert result.stdout == ""


def test_an_api_key_file_that_is_no_text_is_refused(home: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xff\xfe\x00key\n")
    result = run(home, (*SERVE, "--api-key-file", str(keys)))
    assert_refused(result.returncode, 2, result.stderr, "--api-key-file", str(keys))


def test_a_port_that_is_taken_is_said_and_nothing_is_served(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run(home, (*SERVE, "--port", str(port)))
    assert result.stdout == ""
    words = (f"--port {port}", "in use", "already running")
    assert_refused(result.returncode, 2, result.stderr, *words)


# Models that cannot be loaded.


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"this is no model\n" * 100, id="text"),
        pytest.param(b"GGUF", id="magic alone"),
        pytest.param(b"GGUF" + bytes(96), id="zeros"),
        pytest.param(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 92, id="huge counts"),
        pytest.param(
            b"GGUF\x03\0\0\0" + (5).to_bytes(8, "little") + (9).to_bytes(8, "little") + bytes(76),
            id="cut off",
        ),
        pytest.param(b"GGUF" + b"\x63\0\0\0" + bytes(92), id="unknown version"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line_and_code_3(
    home: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    args = ("-m", "gemma_server", "serve", "--port", "0")
    result = run(home, args, {"MODEL_CHECKPOINT": str(path)}, timeout_s=60)
    assert_refused(result.returncode, 3, result.stderr, "cannot load the model", str(path))
    assert result.stdout == ""


@pytest.mark.parametrize("files", [(), ("notes.txt",), ("_METADATA",), ("config.json",)])
def test_a_directory_that_is_no_checkpoint_is_one_line_and_code_3(
    home: Path, tmp_path: Path, files: tuple[str, ...]
) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for name in files:
        (path / name).write_text("not what it seems\n")
    args = ("-m", "gemma_server", "serve", "--port", "0", "--model-checkpoint", str(path))
    result = run(home, args, {"MODEL_CHECKPOINT": "/overridden/by/the/flag"}, timeout_s=60)
    assert_refused(result.returncode, 3, result.stderr, "cannot load the model", str(path))
    assert result.stdout == ""
