"""The thread that drives the device: plan, dispatch, read, commit."""

import threading
import time
from collections import deque
from collections.abc import Callable

from gemma_server.engine.plan import PendingStep, Plan, Runner
from gemma_server.engine.request import Handle, Request
from gemma_server.engine.scheduler import Scheduler
from gemma_server.engine.stats import EngineStats
from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import BatchTooLarge, GenerationFailed, NotReady, RequestError

_LOOK_S = 0.5
_PAUSED_S = _LOOK_S + 1.0


class _Probe:
    """A caller that waits for the engine's thread to answer."""

    def __init__(self, *, device: bool) -> None:
        self.device = device
        self.over = threading.Event()
        self.refusal: RequestError | None = None


class Engine:
    """Runs one scheduler on one runner.

    Any thread may submit and cancel. Every accepted request ends with exactly one terminal event.
    When the runner raises, every request fails, later ones are refused, and `on_death` is called
    with the exception: the process is restarted, not the engine.

    `max_in_flight` is the most plans in flight at once. With two, the device runs one while the
    host reads the tokens of the other. A second thread watches the first: a device that never
    answers, by the bound in `step_times`, counts as one that raised.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        on_death: Callable[[BaseException], None],
        *,
        max_in_flight: int = 1,
        step_times: StepTimes | None = None,
    ) -> None:
        self._step_times = step_times or StepTimes()
        self._runner = runner
        self._scheduler = scheduler
        self._on_death = on_death
        self._max_in_flight = max_in_flight
        self._in_flight: deque[tuple[Plan, PendingStep]] = deque()  # its thread's alone
        self._probes: deque[_Probe] = deque()
        self._changed = threading.Condition()  # guards the scheduler and the fields below
        self._refusal: RequestError | None = None
        self._stopping = False
        self._progress_at: float | None = None  # None while nothing is in flight
        self._resumed_at = 0.0  # after a pause of the whole process; the watcher's alone
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._over = threading.Event()  # its thread has ended

    @property
    def context_length(self) -> int:
        """The most tokens a prompt and its answer may have together."""
        return self._scheduler.limits.context_length

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a prompt."""
        return self._scheduler.limits.longest_prompt

    def stats(self) -> EngineStats:
        """The figures at this moment."""
        scheduler = self._scheduler
        return EngineStats(
            slots=scheduler.limits.slots,
            active=scheduler.active,
            queued=scheduler.queued,
            steps=self._steps,
            tokens_sampled=scheduler.tokens_sampled,
        )

    def start(self) -> None:
        """Start the engine's threads."""
        self._thread.start()
        self._watcher.start()

    def check_prompt(self, tokens: int) -> None:
        """Raise `PromptRefused` when a prompt of so many tokens can never be accepted."""
        self._scheduler.check_prompt(tokens)

    def submit(
        self,
        requests: list[Request],
        deadline: float | None = None,
        caller: str = "",
        *,
        returns: bool = True,
    ) -> list[Handle]:
        """Queue the requests, all or none of them; `deadline` is on the monotonic clock. Callers
        share slots and places in the queue; one that `returns` could come back by this name.

        Raises:
            PromptRefused, QueueFull, DeadlineExceeded: as `Scheduler.submit`.
            BatchTooLarge: there are more requests than slots and queue together can hold.
            GenerationFailed, NotReady: the engine is dead, or has stopped.
        """
        limits = self._scheduler.limits
        if len(requests) > limits.slots + limits.max_queue:
            raise BatchTooLarge(len(requests), limits.slots + limits.max_queue)
        with self._changed:
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)
            handles = self._scheduler.submit(requests, deadline, caller, returns=returns)
            self._changed.notify()
            return handles

    def cancel(self, handle: Handle) -> None:
        """End a request early; its slot is free from the next plan on."""
        with self._changed:
            self._scheduler.cancel(handle)

    def probe(self, *, device: bool) -> None:
        """Wait for the engine's thread to answer, and with `device` for the device too.

        Raises:
            GenerationFailed, NotReady: the engine is dead, or has stopped.
        """
        probe = _Probe(device=device)
        with self._changed:
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)
            self._probes.append(probe)
            self._changed.notify()
        probe.over.wait()
        if probe.refusal is not None:
            raise probe.refusal.with_traceback(None)

    def step_age_s(self) -> float:
        """Seconds since the device, which has work, last ended a plan; 0 when it is idle."""
        at = self._progress_at
        return 0.0 if at is None else time.monotonic() - max(at, self._resumed_at)

    def is_slow(self) -> bool:
        """Whether the device's step takes far longer than any before, so that it may be hung."""
        return self.step_age_s() > self._step_times.slow_after_s

    def stop(self, timeout_s: float = 5.0) -> None:
        """Fail all requests, and wait up to `timeout_s` for the plans in flight and the thread."""
        with self._changed:
            self._stopping = True
            self._refuse(NotReady("draining", "the server has stopped", retry_after_s=5))
            self._changed.notify()
        self._thread.join(timeout_s)

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

    def _run(self) -> None:
        try:
            while (plan := self._next_plan()) is not None or self._in_flight or self._probes:
                if plan is not None:
                    self._dispatch(plan)
                if len(self._in_flight) >= (self._max_in_flight if plan is not None else 1):
                    self._commit_oldest()
                self._receive()
        except BaseException as error:  # the device is in an unknown state
            with self._changed:
                self._refuse(GenerationFailed(f"the engine died: {type(error).__name__}"))
            self._on_death(error)
        finally:
            self._over.set()

    def _next_plan(self) -> Plan | None:
        """The next plan; None while results or probes come first, or the engine is stopping."""
        with self._changed:
            while not self._stopping:
                plan = self._scheduler.plan()
                if plan is not None or self._in_flight or self._probes:
                    return plan
                self._changed.wait()
            return None

    def _dispatch(self, plan: Plan) -> None:
        if not self._in_flight:
            self._progress_at = time.monotonic()
        self._in_flight.append((plan, self._runner.dispatch(plan)))

    def _commit_oldest(self) -> None:
        plan, pending = self._in_flight.popleft()
        result = pending.read()
        self._step_times.took(self.step_age_s())
        self._progress_at = time.monotonic() if self._in_flight else None
        self._steps += plan.steps
        with self._changed:
            self._scheduler.commit(plan, result)

    def _receive(self) -> None:
        """Answer the probes."""
        for probe in list(self._probes):
            if probe.device:
                self._progress_at = time.monotonic()  # so that a hang here counts too
                self._runner.touch()
                self._progress_at = time.monotonic() if self._in_flight else None
            with self._changed:
                if probe in self._probes:  # else it was refused meanwhile
                    self._probes.remove(probe)
                    probe.over.set()

    def _refuse(self, error: RequestError) -> None:
        self._refusal = error
        self._scheduler.fail_all(error)
        while self._probes:
            probe = self._probes.popleft()
            probe.refusal = error
            probe.over.set()
