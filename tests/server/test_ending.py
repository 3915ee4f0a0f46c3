"""How the server ends: signals, drains, and processes that are killed."""

import http.client
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemma_server.engine.fake import fake_tokenizer
from testing.answers import error_inside
from testing.http_client import ask, read_answer, send
from testing.server import (
    LONG,
    START_S,
    Server,
    free_port,
    is_our_server,
    listens,
    serve_slowly,
    serve_with_runner,
)
from testing.waiting import wait_until
from tests.server.conftest import Start

pytestmark = pytest.mark.slow

QUICK_S = 15  # on a busy machine; else a second, and 60 where it waits for something


def _gone(server: Server) -> bool:
    try:
        server.open_socket().close()
    except ConnectionError:
        return True
    return False


def test_sigterm_while_idle_ends_quickly_with_code_0(start: Start) -> None:
    server = start()
    kept_alive = server.connect()
    assert ask(kept_alive, "GET", "/healthz").status == 200
    with server.open_socket():  # and says nothing
        server.signal(signal.SIGTERM)
        assert server.wait(QUICK_S) == 0
    kept_alive.close()
    assert "Traceback" not in server.stderr


def test_sigint_while_idle_ends_quickly_with_code_0(start: Start) -> None:
    server = start()
    server.signal(signal.SIGINT)
    assert server.wait(QUICK_S) == 0
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_ends_it_cleanly_too(
    start: Start, number: signal.Signals
) -> None:
    server = start()
    worker = server.worker
    os.kill(worker, number)  # as a terminal does for Ctrl-C
    server.signal(number)
    assert server.wait(QUICK_S) == 0
    assert not is_our_server(worker)
    assert "Traceback" not in server.stderr


def test_sigint_cuts_a_stream_but_never_silently(start: Start) -> None:
    server = start(*serve_slowly(0.05))
    stream = server.stream(LONG)
    next(stream.events())
    server.signal(signal.SIGINT)
    stream.broken()
    assert server.wait(QUICK_S) == 0


def test_sigterm_while_loading_ends_quickly_and_is_no_failure(start: Start) -> None:
    server = start(*serve_with_runner("lambda slots: time.sleep(60)"), ready=False)
    wait_until(lambda: "starting" in server.stderr, START_S)
    server.signal(signal.SIGTERM)
    assert server.wait(QUICK_S) == 0
    assert server.stdout == ""
    assert "cannot load" not in server.stderr
    assert "Traceback" not in server.stderr


def test_a_load_that_ends_while_the_server_drains_is_no_failure(start: Start) -> None:
    port = free_port()
    args = serve_with_runner("lambda slots: time.sleep(2) or Real(slots)", "--port", str(port))
    server = start(*args, ready=False)
    wait_until(lambda: listens(port), START_S)
    # A request that is still on its way in keeps the worker until the load is over.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\n")
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(2.5)
    assert server.wait() == 0
    assert server.stdout == ""
    assert "Traceback" not in server.stderr


def test_sigterm_lets_streams_and_answers_finish_and_takes_no_more(start: Start) -> None:
    server = start(*serve_slowly(0.05, "--slots", "1"))
    text = "finish me, all of it: " + "z" * 20
    kept_alive = server.connect()
    assert ask(kept_alive, "GET", "/readyz").status == 200
    stream = server.stream(text)
    waiting = server.connect()
    send(waiting, "POST", "/prompt", {"prompt": "waited in the line"})
    wait_until(lambda: server.load() == (1, 1))
    server.signal(signal.SIGTERM)
    time.sleep(0.3)
    server.signal(signal.SIGTERM)  # who is impatient changes nothing
    # A new connection is refused, or told; so is one that was there before.
    try:
        assert server.ask("GET", "/readyz").json["status"] == "draining"
        assert server.prompt("more").error["code"] == "draining"
    except ConnectionError:
        pass
    try:
        ready = ask(kept_alive, "GET", "/readyz")
        assert (ready.status, ready.json["status"]) == (503, "draining")
    except (ConnectionError, http.client.HTTPException):
        pass
    kept_alive.close()
    assert stream.text() == text
    assert read_answer(waiting.getresponse()).json["response"] == "waited in the line"
    waiting.close()
    assert server.wait() == 0
    assert "Traceback" not in server.stderr


def test_what_outlasts_the_drain_timeout_is_cut_and_told(start: Start) -> None:
    server = start(*serve_slowly(0.05, "--drain-timeout", "4"))
    stream = server.stream(LONG)
    waiting = server.connect()
    send(waiting, "POST", "/prompt", {"prompt": LONG})
    wait_until(lambda: server.load()[0] == 2)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    *pieces, failure = stream.broken()
    assert len(pieces) > 10
    assert error_inside(failure, stream.request_id)["code"] == "draining"
    answer = read_answer(waiting.getresponse())
    waiting.close()
    assert (answer.status, answer.error["code"]) == (503, "draining")
    assert server.wait(10) == 0
    assert 1 < time.monotonic() - began < 8


@pytest.mark.parametrize("seconds", ["1", "2"])
def test_the_shortest_drain_timeouts_still_tell_a_stream(start: Start, seconds: str) -> None:
    server = start(*serve_slowly(0.05, "--drain-timeout", seconds))
    stream = server.stream(LONG)
    next(stream.events())
    server.signal(signal.SIGTERM)
    documents = stream.broken()
    assert error_inside(documents[-1], stream.request_id)
    assert server.wait() == 0


def test_a_killed_master_takes_its_worker_along(start: Start) -> None:
    server = start()
    worker = server.worker
    server.signal(signal.SIGKILL)
    server.wait()
    wait_until(lambda: not is_our_server(worker), timeout_s=10)
    assert _gone(server)


def test_a_killed_worker_breaks_its_stream_and_a_new_one_answers(start: Start) -> None:
    server = start(*serve_slowly(0.02))
    stream = server.stream(LONG)
    next(stream.events())
    first = server.worker
    os.kill(first, signal.SIGKILL)
    stream.broken()
    server.wait_ready(times=2)
    assert server.worker != first
    assert server.prompt("again").json["response"] == "again"


def test_an_engine_that_dies_breaks_its_stream_and_a_new_worker_answers(start: Start) -> None:
    server = start(*serve_with_runner("functools.partial(Real, step_s=0.02, fail_at=20)"))
    stream = server.stream("x" * 100)
    stream.broken()
    server.wait_ready(times=2)
    assert server.prompt("again").json["response"] == "again"
    assert server.process.poll() is None


def test_all_who_wait_are_told_that_the_engine_died(start: Start) -> None:
    server = start(*serve_with_runner("functools.partial(Real, step_s=0.02, fail_at=20)"))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.prompt, "x" * 100) for _ in range(8)]
        answers = [each.result() for each in asked]
    assert [answer.status for answer in answers] == [500] * 8
    assert {answer.error["code"] for answer in answers} == {"generation_failed"}


def after(code: str) -> tuple[str, ...]:
    """A server that begins with this code."""
    command, own, *flags = serve_slowly(0.0)
    return (command, f"{code}\n{own}", *flags)


SLOW_TO_BOOT = """
import time
from gemma_server.server.worker import ModelWorker as Worker
boot = Worker.init_signals
Worker.init_signals = lambda worker: (time.sleep(2), boot(worker))
"""
# Within the lock of the pool, for long, once there is a file `asked`.
SLOW_TO_SUBMIT = """
import pathlib, time
from concurrent.futures import ThreadPoolExecutor as Pool
submit = Pool.submit
def slowly(pool, *args):
    with pool._shutdown_lock:
        pathlib.Path("asked").touch()
        time.sleep(2)
    return submit(pool, *args)
Pool.submit = slowly
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_a_worker_that_has_only_been_forked(
    start: Start, number: signal.Signals
) -> None:
    server = start(*after(SLOW_TO_BOOT), ready=False)
    wait_until(lambda: server.has_worker, START_S)
    server.signal(number)
    assert server.wait(20) == 0  # lost, it would end with the time to drain: 60 seconds


def test_sigint_amid_a_submission_is_no_deadlock(start: Start) -> None:
    server = start(*after(SLOW_TO_SUBMIT))
    with server.open_socket(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        wait_until(lambda: server.wrote("asked"))
        server.signal(signal.SIGINT)
        assert server.wait(20) == 0


def with_hangup(action: str) -> tuple[str, ...]:
    """A slow server that begins with SIGHUP ignored, as nohup has it, or not."""
    code, *flags = serve_slowly(0.05)[1:]
    return ("-c", f"import signal; signal.signal(signal.SIGHUP, signal.{action})\n{code}", *flags)


def signal_both(server: Server, number: signal.Signals) -> None:
    """As a terminal does, to the whole process group."""
    os.kill(server.worker, number)
    server.signal(number)


def test_a_closed_terminal_drains_the_server(start: Start) -> None:
    """It must not leave a server behind, nor load a second model, nor cut an answer."""
    server = start(*with_hangup("SIG_DFL"))
    stream = server.stream("finish me, all of it")
    signal_both(server, signal.SIGHUP)
    assert stream.text() == "finish me, all of it"
    assert server.wait() == 0


def test_with_nohup_a_closed_terminal_changes_nothing(start: Start) -> None:
    server = start(*with_hangup("SIG_IGN"))
    stream = server.stream("go on")
    signal_both(server, signal.SIGHUP)
    assert stream.text() == "go on"
    time.sleep(1.5)  # gunicorn looks at its signals once a second
    assert server.prompt("still").json["response"] == "still"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_signals_for_other_purposes_change_nothing(server: Server) -> None:
    """Those for more workers, new binaries, logs and resized windows."""
    first = server.worker
    for number in ("SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGPIPE", "SIGCHLD"):
        signal_both(server, signal.Signals[number])
    time.sleep(1.5)  # gunicorn looks at its signals once a second
    assert server.worker == first  # and fails where there are two
    assert server.prompt("still").json["response"] == "still"


def test_new_connections_are_refused_while_draining(start: Start) -> None:
    server = start(*serve_slowly(0.05))
    stream = server.stream(LONG)
    next(stream.events())
    server.signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            server.open_socket().close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, timeout_s=3)
    assert server.process.poll() is None
    stream.close()
    assert server.wait() == 0


def test_a_pause_of_the_whole_process_is_no_hang(start: Start) -> None:
    """As by a debugger, Ctrl-Z or a frozen container."""
    server = start(*serve_slowly(0.05, "--hung-after", "3"))
    first, waiting = server.worker, server.connect()
    send(waiting, "POST", "/prompt", {"prompt": "it goes on" * 3})
    wait_until(lambda: server.load() == (1, 0))
    os.kill(first, signal.SIGSTOP)
    time.sleep(5)
    os.kill(first, signal.SIGCONT)
    assert read_answer(waiting.getresponse()).json["response"] == "it goes on" * 3
    waiting.close()
    assert server.prompt("and on").json["response"] == "and on"
    assert server.worker == first


HUNG = """
import threading
from gemma_server.engine.fake import FakeRunner
dispatch = FakeRunner.dispatch
class Hung:
    def read(self):
        threading.Event().wait()
def hangs_at(runner, plan):
    asked = plan.prefill is not None and 90 in plan.prefill.token_ids
    return Hung() if asked else dispatch(runner, plan)
FakeRunner.dispatch = hangs_at
"""


def test_a_device_that_hangs_is_told_and_replaced(start: Start) -> None:
    [poison] = [chr(byte) for byte in range(128) if fake_tokenizer().encode(chr(byte))[1] == 90]
    server = start(*after(HUNG), "--hung-after", "6")
    assert server.prompt("well").status == 200
    waiting = server.connect()
    send(waiting, "POST", "/prompt", {"prompt": poison})
    wait_until(lambda: server.ask("GET", "/readyz").status == 503)
    assert server.ask("GET", "/readyz").json["status"] == "stuck"
    refused = server.prompt("more")
    assert (refused.status, refused.error["code"]) == (503, "stuck")
    assert server.ask("GET", "/healthz").status == 200
    told = read_answer(waiting.getresponse())
    waiting.close()
    assert (told.status, told.error["code"]) == (500, "generation_failed")
    assert "has not answered for 6 s" in told.error["message"]
    server.wait_ready(times=2)
    assert server.prompt("well again").json["response"] == "well again"
    assert "in _commit_oldest" in server.stderr  # where it hung
