"""The gunicorn worker: one process with all models, and many threads."""

import contextlib
import faulthandler
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from flask import Flask
from gunicorn.http import errors as http_errors

from gemma_server.api import heavy
from gemma_server.api.errors import STANDARD, make_error_body
from gemma_server.console import say
from gemma_server.errors import GenerationFailed, ModelLoadError, UsageError
from gemma_server.frames.server import FrameServer
from gemma_server.frames.service import Service
from gemma_server.server import memory
from gemma_server.server.addresses import check_socket
from gemma_server.server.hosted import Hosted, HostedGemma, Loaded, first_model
from gemma_server.server.http.worker import HttpWorker
from gemma_server.server.ready_line import Address, address_of, announce
from gemma_server.serving.models import Models
from gemma_server.settings import load_settings
from gemma_server.web.app import make_app

logger = logging.getLogger(__name__)

LOAD_FAILED = 3  # gunicorn's own code for a worker that cannot boot: the master ends with it
DIED = 1  # gunicorn starts a new worker, which loads the model again
# Sent to the process group when a terminal closes, or by hand; their default ends a process.
_FOR_THE_MASTER = (signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
# Blocked while the master forks, or a worker that has no handlers yet would lose them.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_STDIN = 0
_LOOK_S = 0.01
_LAST_ANSWERS_S = 1.0  # to send errors to the clients whose requests ended with the engine
_LAST_WORDS_S = 2  # requests still running so long before the drain ends get an error

_STATUS_OF_PARSE_ERROR: dict[type[Exception], tuple[int, str]] = {
    http_errors.LimitRequestLine: (414, "URI Too Long"),
    http_errors.LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    http_errors.UnsupportedTransferCoding: (501, "Not Implemented"),
    http_errors.ExpectationFailed: (417, "Expectation Failed"),
}


def create_app() -> Flask:
    """The WSGI app, with the model that `ModelWorker` loads after the fork."""
    if "gemma_server.server.gunicorn_conf" not in sys.modules:
        raise UsageError("start gunicorn with -c python:gemma_server.server.gunicorn_conf")
    settings = load_settings()
    models = Models(first_model(settings))
    app = make_app(models, settings)
    app.extensions["hosted"] = HostedGemma(settings, models)
    return app


def check_gunicorn(cfg: Any) -> None:
    """Refuse gunicorn settings under which the server cannot work.

    Raises:
        UsageError: with the reason.
    """
    if cfg.preload_app:
        raise UsageError("--preload would load the model before the fork: a GPU does not survive")
    if cfg.reuse_port:
        raise UsageError("--reuse-port: the worker would bind what the master has not checked")
    if cfg.workers != 1:
        raise UsageError(
            f"--workers {cfg.workers}: every worker would load its own model; "
            "one worker batches all requests"
        )
    if not issubclass(cfg.worker_class, ModelWorker):
        raise UsageError(
            f"--worker-class {cfg.worker_class_str}: the server needs its own, "
            "gemma_server.server.worker.ModelWorker"
        )


class ModelWorker(HttpWorker):
    """A worker with a model in it.

    It ends when the device hangs, answers unreadable HTTP in JSON, and drains on SIGTERM.
    """

    hosted: Hosted | None = None  # until the worker has booted
    frames: FrameServer | None = None
    drain_until = 0.0  # on the monotonic clock, once SIGTERM has come
    leaving = False  # the process ends, and nothing may interrupt that

    def init_signals(self) -> None:
        """Leave to the master what a terminal sends to both: it ends or keeps this worker."""
        super().init_signals()
        for number in _FOR_THE_MASTER:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, self._poll)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def notify(self) -> None:
        """Show the master that this worker lives, once a second, and tidy up."""
        super().notify()
        if heavy.have_passed():
            memory.give_back()

    def start_hosted(self) -> None:
        """Serve frames, and load the model in a thread, so that /readyz answers meanwhile."""
        # gunicorn looks each setting up in three steps, dozens of times a request. They no longer
        # change: cache them.
        self.cfg.__dict__.update({name: item.get() for name, item in self.cfg.settings.items()})
        app: Flask = self.wsgi
        hosted: Hosted = app.extensions["hosted"]
        memory.share_arenas()
        _allow_many_files()
        self.hosted = hosted
        if hosted.settings.frames is not None:
            self._take_frames(hosted.settings.frames, hosted.service)
        address = address_of(hosted.settings, self.sockets)
        threading.Thread(
            target=self._load, args=(hosted, address), name="loader", daemon=True
        ).start()
        if hosted.settings.stop_with_stdin:
            threading.Thread(target=self._stop_with_stdin, name="stdin", daemon=True).start()

    def _poll(self, sig: int, frame: FrameType | None) -> None:
        """SIGHUP: look which versions are wanted."""
        if self.hosted is not None:
            self.hosted.poll()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: refuse new work, let the rest finish, and end what takes too long."""
        if self.alive and self.hosted is not None:
            self.hosted.drain()
            if self.frames is not None:
                self.frames.drain()
            patience_s = max(0, self.hosted.settings.drain_timeout - _LAST_WORDS_S)
            self.drain_until = time.monotonic() + patience_s + _LAST_WORDS_S / 2
            timer = threading.Timer(patience_s, self.hosted.stop)
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGQUIT: end at once.

        gunicorn would shut its pool of threads down first, whose lock this very thread may hold.
        """
        self.alive = False
        if not self.leaving:
            self.leaving = True
            sys.exit(0)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a request that gunicorn could not parse, in the JSON form of all errors."""
        status, reason = 500, "Internal Server Error"
        if isinstance(exc, http_errors.ParseException):
            status, reason = _STATUS_OF_PARSE_ERROR.get(type(exc), (400, "Bad Request"))
            message, kind = f"not a valid HTTP request: {exc}"[:300], "invalid_request_error"
            logger.info("unreadable request: %s", type(exc).__name__)
        else:
            message, kind = "an error inside the server", "server_error"
            logger.error("request failed", exc_info=exc)
        request_id = os.urandom(16).hex()
        code = reason.lower().replace(" ", "_")
        body = json.dumps(STANDARD.write(make_error_body(kind, message, code, request_id))).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {request_id}\r\n\r\n"
        )
        try:
            client.sendall(head.encode() + body)
        except OSError:
            logger.debug("the client of an unreadable request is gone")

    def dump_stacks(self) -> None:
        """Write every thread's stack to standard error."""
        faulthandler.dump_traceback(all_threads=True)

    def leave(self) -> None:
        """End the process with the pending SystemExit's code, without waiting for threads."""
        self.leaving = True
        if self.frames is not None:
            self.frames.stop(max(0.0, self.drain_until - time.monotonic()))
        if self.hosted is not None:
            self.hosted.stop()
        error = sys.exc_info()[1]
        code = error.code if isinstance(error, SystemExit) else 0
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed at the start
            with contextlib.suppress(OSError):  # a full disk, or a reader that is gone
                stream.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)

    def _take_frames(self, path: Path, service: Service) -> None:
        try:
            check_socket("--frames", path)
            self.frames = FrameServer(path, service, self._died, threads=self.cfg.threads)
        except (UsageError, OSError) as error:
            self._give_up(str(error))
        else:
            self.frames.start()

    def _load(self, hosted: Hosted, address: Address) -> None:
        try:
            loaded = hosted.load(self._died)
            memory.settle()
        except ModelLoadError as error:
            self._give_up(f"cannot load the model: {error}")
        except Exception as error:
            traceback.print_exc()
            self._give_up(f"cannot load the model: {type(error).__name__}: {error}")
        else:
            if self.alive:  # else SIGTERM came first
                self._announce(hosted, loaded, address)

    def _announce(self, hosted: Hosted, loaded: Loaded, address: Address) -> None:
        try:
            announce(hosted.settings, loaded, address, hosted.example)
        except OSError as error:  # whoever read standard output is gone, its clients may not be
            logger.error("cannot print the ready line: %s", error)

    def _stop_with_stdin(self) -> None:
        """Wait until standard input ends, then tell the master to end, which drains this worker."""
        # Without sys.stdin it was closed at the start: its descriptor is another file's by now.
        # select, since some pipes do not block; an input that cannot be read counts as ended.
        with contextlib.suppress(OSError):
            while sys.stdin and select.select([_STDIN], [], []) and os.read(_STDIN, 65536):
                pass
        if os.getppid() == self.ppid:  # else the master has ended, and the worker knows
            os.kill(self.ppid, signal.SIGTERM)

    def _give_up(self, line: str) -> None:
        if self.alive:  # else it is being stopped, which is no failure
            say(line)
            if self.frames is not None:
                self.frames.stop(0.0)
            os._exit(LOAD_FAILED)

    def _died(self, error: BaseException) -> None:
        logger.critical("the engine or the frames died; this worker ends", exc_info=error)
        if isinstance(error, GenerationFailed):  # the watchdog's: no traceback says where it hangs
            self.dump_stacks()
        until = time.monotonic() + _LAST_ANSWERS_S
        while self.handled and time.monotonic() < until:
            time.sleep(_LOOK_S)
        if self.frames is not None:
            self.frames.stop(until - time.monotonic())
        os._exit(DIED)


def _allow_many_files() -> None:
    """Raise the limit of open files to the hard one: each connection needs one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
