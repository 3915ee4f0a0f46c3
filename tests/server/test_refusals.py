"""What the server refuses to start with: one clear line, and the code that says why.

A process shows each kind once: its exit code, and that nothing is served. All else that is refused,
and in what words, is told by the same functions in this process.
"""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.config import Config

from gemma_server.cli.main import main
from gemma_server.errors import ModelLoadError, UsageError
from gemma_server.server.addresses import check_addresses
from gemma_server.server.worker import check_gunicorn
from gemma_server.serving.checkpoint import open_checkpoint
from testing.server import BY_HAND, GUNICORN, SERVE, assert_one_line, assert_refused, run


@pytest.mark.slow
def test_a_server_that_cannot_start_ends_with_code_2(home: Path) -> None:
    result = run(home, (*SERVE, "--slots", "0"), {"GEMMA_HOST": "0.0.0.0"})
    assert_refused(result.returncode, 2, result.stderr, "--slots", "GEMMA_SLOTS")
    assert result.stdout == ""


@pytest.fixture
def _never_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not refused would become a server in this process."""

    def serve(self: WSGIApplication) -> None:
        raise AssertionError("it would be served")

    monkeypatch.setattr(WSGIApplication, "run", serve)


@pytest.mark.usefixtures("_never_served")
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
    flags: tuple[str, ...], env: dict[str, str], words: tuple[str, ...]
) -> None:
    fake = {"GEMMA_FAKE": "1", "GEMMA_PORT": "0"}
    result = CliRunner(env={**fake, **env}).invoke(main, ["serve", *flags])
    assert_refused(result.exit_code, 2, result.stderr, *words)
    assert result.stdout == ""


@pytest.mark.usefixtures("_never_served")
def test_an_api_key_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xff\xfe\x00key\n")
    result = CliRunner().invoke(main, ["serve", "--fake", "--api-key-file", str(keys)])
    assert_refused(result.exit_code, 2, result.stderr, "--api-key-file", str(keys))


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_and_nothing_is_served(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run(home, (*SERVE, "--port", str(port)))
    assert result.stdout == ""
    words = (f"--port {port}", "in use", "already running")
    assert_refused(result.returncode, 2, result.stderr, *words)


@pytest.mark.parametrize("flag", ["uds", "frames"])
def test_a_place_that_is_not_ours_is_left_alone(tmp_path: Path, flag: str) -> None:
    """A file, somebody's socket, a busy one, no directory, a path that is too long."""
    path = tmp_path / "file"
    path.write_text("keep me")
    theirs, full, waiting = (socket.socket(socket.AF_UNIX) for _ in range(3))
    with theirs, full, waiting:
        theirs.bind(str(tmp_path / "theirs"))
        theirs.listen()
        full.bind(str(tmp_path / "full"))
        full.listen(0)
        waiting.connect(str(tmp_path / "full"))
        for name, why in (
            ("file", "a file is in its place; remove it first"),
            ("theirs", "another server listens there"),
            ("full", "cannot tell whose it is: Resource temporarily unavailable"),
            ("no/where", "there is no such directory"),
            ("x" * 120, "longer than 107 bytes"),
        ):
            place = tmp_path / name
            listened = (place, []) if flag == "frames" else (None, [str(place)])
            with pytest.raises(UsageError) as refused:
                check_addresses(*listened)
            assert str(refused.value) == f"--{flag} {tmp_path / name}: {why}"
    assert path.read_text() == "keep me"


def test_two_servers_in_one_place(tmp_path: Path) -> None:
    path = tmp_path / "both"
    with pytest.raises(UsageError, match="that is --uds as well"):
        check_addresses(path, [str(path)])


# gunicorn by hand.


@pytest.mark.slow
def test_gunicorn_flags_that_cannot_work_end_it_with_code_2(home: Path) -> None:
    result = run(home, (*BY_HAND, "--workers", "2"), {"GEMMA_FAKE": "1", "GEMMA_PORT": "0"})
    assert_refused(result.returncode, 2, result.stderr, "--workers", "batches all requests")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("workers", 2, ("--workers", "one worker batches all requests")),
        ("preload_app", True, ("--preload", "a GPU does not survive")),
        ("reuse_port", True, ("--reuse-port", "has not checked")),
        ("worker_class", "sync", ("--worker-class", "gemma_server.server.worker.ModelWorker")),
        ("worker_class", "gthread", ("--worker-class", "gemma_server.server.worker.ModelWorker")),
    ],
)
def test_gunicorn_settings_that_cannot_work_are_one_line(
    setting: str, value: object, words: tuple[str, ...]
) -> None:
    config = Config()
    config.set("worker_class", "gemma_server.server.worker.ModelWorker")
    check_gunicorn(config)
    config.set(setting, value)
    with pytest.raises(UsageError) as refused:
        check_gunicorn(config)
    assert_one_line(str(refused.value), *words)


@pytest.mark.slow
def test_gunicorn_without_its_configuration_is_refused(home: Path) -> None:
    args = (*GUNICORN, "-b", "127.0.0.1:0", "gemma_server.server.worker:create_app()")
    result = run(home, args, {"GEMMA_FAKE": "1"})
    assert result.returncode != 0
    assert "start gunicorn with -c python:gemma_server.server.gunicorn_conf" in result.stderr


# Models that cannot be loaded.


@pytest.mark.slow
def test_a_checkpoint_that_is_none_ends_the_server_with_code_3(home: Path, tmp_path: Path) -> None:
    """The flag's, whatever the variable names; its socket for frames is gone too."""
    path, frames = tmp_path / "missing.gguf", tmp_path / "frames"
    args = ("-m", "gemma_server", "serve", "--port", "0", "--model-checkpoint", str(path))
    env = {"MODEL_CHECKPOINT": "/overridden/by/the/flag"}
    result = run(home, (*args, "--frames", str(frames)), env)
    assert_refused(result.returncode, 3, result.stderr, "cannot load the model", str(path))
    assert result.stdout == ""
    assert not frames.exists()


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
def test_a_checkpoint_that_is_none_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError) as refused:
        open_checkpoint(path)
    assert_one_line(str(refused.value), str(path))


@pytest.mark.parametrize("files", [(), ("notes.txt",), ("_METADATA",), ("config.json",)])
def test_a_directory_that_is_no_checkpoint_is_one_line(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for name in files:
        (path / name).write_text("not what it seems\n")
    with pytest.raises(ModelLoadError) as refused:
        open_checkpoint(path)
    assert_one_line(str(refused.value), str(path))
