"""The one thread that touches a runner, and the one that watches it."""

import threading
import time
from collections.abc import Callable

from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import GenerationFailed, NotReady, RequestError

_LOOK_S = 0.5
_PAUSED_S = _LOOK_S + 1.0


class DeviceThread:
    """What every engine is: a thread that drives the device, until it is stopped or dies.

    When it raises, every request fails, later ones are refused, and `on_death` is called with the
    exception: the process is restarted, not the engine. A second thread watches the first: a device
    that never answers, by the bound in `step_times`, counts as one that raised.
    """

    def __init__(self, on_death: Callable[[BaseException], None], step_times: StepTimes) -> None:
        self._step_times = step_times
        self._on_death = on_death
        self._changed = threading.Condition()  # guards the queue and the fields below
        self._refusal: RequestError | None = None
        self._stopping = False
        self._progress_at: float | None = None  # None while nothing is in flight
        self._resumed_at = 0.0  # after a pause of the whole process; the watcher's alone
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._over = threading.Event()  # its thread has ended

    def start(self) -> None:
        """Start both threads."""
        self._thread.start()
        self._watcher.start()

    def step_age_s(self) -> float:
        """Seconds since the device, which has work, last ended a step; 0 when it is idle."""
        at = self._progress_at
        return 0.0 if at is None else time.monotonic() - max(at, self._resumed_at)

    def is_slow(self) -> bool:
        """Whether the device's step takes far longer than any before, so that it may be hung."""
        return self.step_age_s() > self._step_times.slow_after_s

    def stop(self, timeout_s: float = 5.0) -> None:
        """Fail all requests, and wait up to `timeout_s` for what is in flight and both threads,
        which hold all that is on the device."""
        with self._changed:
            self._stopping = True
            self._refuse(NotReady("draining", "the server has stopped", retry_after_s=5))
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._over.is_set():
            self._watcher.join(timeout_s)

    def _drive(self) -> None:
        """Work until `_stopping`."""
        raise NotImplementedError

    def _fail_all(self, error: RequestError) -> None:
        """End every request with this error."""
        raise NotImplementedError

    def _require_alive(self) -> None:
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    def _refuse(self, error: RequestError) -> None:
        self._refusal = error
        self._fail_all(error)

    def _run(self) -> None:
        try:
            self._drive()
        except BaseException as error:  # the device is in an unknown state
            with self._changed:
                self._refuse(GenerationFailed(f"the engine died: {type(error).__name__}"))
            self._on_death(error)
        finally:
            self._over.set()

    def _watch(self) -> None:
        """Fail everything when the device hangs; its thread, which waits for it, cannot."""
        looked = time.monotonic()
        while not self._over.wait(_LOOK_S):
            before, looked = looked, time.monotonic()
            if looked - before > _PAUSED_S:
                self._resumed_at = looked  # the process stood still, and the device with it
            bound_s = self._step_times.hung_after_s
            if self.step_age_s() > bound_s:
                error = GenerationFailed(f"the device has not answered for {bound_s:.0f} s")
                with self._changed:
                    self._refuse(error)
                self._on_death(error)
                return
