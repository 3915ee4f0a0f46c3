"""gunicorn's configuration, from the environment:
`gunicorn -c python:gemma_server.server.gunicorn_conf`.

Runs in the gunicorn master, which must never import jax: a forked child cannot use its parent's
device, nor its parent's threads.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from gunicorn.arbiter import Arbiter

from gemma_server.api.heavy import MOST_WAITING
from gemma_server.console import say
from gemma_server.errors import GemmaServerError, UsageError
from gemma_server.server.addresses import are_inherited, check_addresses, variables_of
from gemma_server.server.hosted import first_model
from gemma_server.server.worker import ENDING, ModelWorker, check_gunicorn
from gemma_server.serving.model_spec import BadModelsFile
from gemma_server.settings import load_settings

_HEALTH_THREADS = 16  # so that /readyz and refusals are answered when slots and queue are full


def _usage_error(error: GemmaServerError) -> None:
    say(str(error))
    sys.exit(2)


try:
    _settings = load_settings()
    _settings.api_keys()
    first_model(_settings)
except (UsageError, BadModelsFile) as error:
    _usage_error(error)

bind = _settings.bind
workers = 1
worker_class = "gemma_server.server.worker.ModelWorker"
# Every queued or running request holds a thread, and so do one that waits for its model to load,
# and every large body that waits to be parsed; more than these are refused.
_waiting = _settings.max_queue if _settings.watches_files else 0
threads = _settings.slots + _settings.max_queue + _waiting + MOST_WAITING + _HEALTH_THREADS
worker_connections = threads + 1000  # idle keep-alive connections hold none
timeout = 60  # seconds without a heartbeat until the worker is killed
graceful_timeout = _settings.drain_timeout
keepalive = 75  # longer than the Go client keeps idle connections, so that it never loses a race
max_requests = 0  # a restart would load the model again
preload_app = False
control_socket_disable = True  # its thread would live in the process that forks
secure_scheme_headers: dict[str, str] = {}  # nothing here depends on a proxy's scheme
umask = 0o117  # a Unix socket gets mode 0660: its owner and group
proc_name = "gemma-server"
loglevel = "warning"


def _ignore_signal() -> None:
    """Handles gunicorn's signals for more workers and new binaries."""


def on_starting(server: Arbiter) -> None:
    """Refuse what cannot work, before anything is forked."""
    try:
        check_gunicorn(server.cfg)
        check_addresses(_settings.frames, [] if are_inherited() else server.cfg.address)
    except UsageError as error:
        _usage_error(error)
    # A second worker would load a second model, and a reload or TTIN would start one.
    server.handle_hup = _hangup_of(server)
    server.handle_ttin = server.handle_ttou = server.handle_usr2 = _ignore_signal


def _hangup_of(server: Arbiter) -> Callable[[], object]:
    """What SIGHUP does. A closed terminal ends the server as TERM does, unless nohup asks to ignore
    it; without a terminal the versions are looked at."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return _ignore_signal
    if _settings.watches_files and not _has_terminal():
        return partial(server.kill_workers, signal.SIGHUP)
    end: Callable[[], object] = server.handle_term
    return end


def _has_terminal() -> bool:
    """Whether there is a terminal whose end would send SIGHUP."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def pre_fork(server: Arbiter, worker: ModelWorker) -> None:
    """Keep signals for the worker until it has handlers; `ModelWorker` lets them in again."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


os.register_at_fork(after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING))


def when_ready(server: Arbiter) -> None:
    """Hold the settings to what is bound: gunicorn's own flags and systemd choose addresses too."""
    for name in ("GEMMA_HOST", "GEMMA_PORT", "GEMMA_UDS"):
        os.environ.pop(name, None)
    os.environ.update(variables_of(listener.getsockname() for listener in server.LISTENERS))
    try:
        load_settings()
    except UsageError as error:
        _usage_error(error)


def post_worker_init(worker: ModelWorker) -> None:
    """Load the model: the worker has forked and handles signals."""
    worker.start_hosted()


def worker_abort(worker: ModelWorker) -> None:
    """Log every thread's stack: the master has given up on this worker."""
    worker.dump_stacks()


def worker_exit(server: Arbiter, worker: ModelWorker) -> None:
    """Exit at once: native threads may still run, and Python must not be torn down under them."""
    worker.leave()
