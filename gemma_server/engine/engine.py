"""The thread that drives the device: plan, dispatch, read, commit."""

import threading
import time
from collections import deque
from collections.abc import Callable

from gemma_server.engine.device_thread import DeviceThread
from gemma_server.engine.draft_model import DraftModel
from gemma_server.engine.plan import PendingStep, Plan, Runner
from gemma_server.engine.priority import Priority
from gemma_server.engine.request import Handle, Request
from gemma_server.engine.scheduler import Scheduler
from gemma_server.engine.stats import EngineStats
from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import BatchTooLarge, RequestError


class _Probe:
    """A caller that waits for the engine's thread to answer."""

    def __init__(self, *, device: bool) -> None:
        self.device = device
        self.over = threading.Event()
        self.refusal: RequestError | None = None


class Engine(DeviceThread):
    """Runs one scheduler on one runner.

    Any thread may submit and cancel. Every accepted request ends with exactly one terminal event.

    `max_in_flight` is the most plans in flight at once. With two, the device runs one while the
    host reads the tokens of the other. A draft model is asked between plans.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        on_death: Callable[[BaseException], None],
        *,
        max_in_flight: int = 1,
        step_times: StepTimes | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        super().__init__(on_death, step_times or StepTimes())
        self._runner = runner
        self._scheduler = scheduler
        self._max_in_flight = max_in_flight
        self._draft_model = draft_model
        self._in_flight: deque[tuple[Plan, PendingStep]] = deque()  # its thread's alone
        self._probes: deque[_Probe] = deque()
        self._steps = 0

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
            prompt_cache_queries=scheduler.prompt_cache.queries,
            prompt_cache_hits=scheduler.prompt_cache.hits,
            prompt_cache_tokens=scheduler.prompt_cache.tokens,
        )

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
        priority: Priority = "interactive",
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
            self._require_alive()
            handles = self._scheduler.submit(
                requests, deadline, caller, returns=returns, priority=priority
            )
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
            self._require_alive()
            self._probes.append(probe)
            self._changed.notify()
        probe.over.wait()
        if probe.refusal is not None:
            raise probe.refusal.with_traceback(None)

    def _drive(self) -> None:
        while (plan := self._next_plan()) is not None or self._in_flight or self._probes:
            if plan is not None:
                self._dispatch(plan)
            if len(self._in_flight) >= (self._max_in_flight if plan is not None else 1):
                self._commit_oldest()
            self._receive()
            self._ask()

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

    def _ask(self) -> None:
        """Ask the draft model how answers may go on."""
        model = self._draft_model
        if model is None or self._in_flight:
            return
        with self._changed:
            asked = self._scheduler.to_ask(model.token_s)
        if not asked:
            return
        self._progress_at = time.monotonic()  # so that a hang here counts too
        proposed = model.propose(asked)
        self._progress_at = None
        with self._changed:
            self._scheduler.foreseen(proposed)

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

    def _fail_all(self, error: RequestError) -> None:
        self._scheduler.fail_all(error)
        while self._probes:
            probe = self._probes.popleft()
            probe.refusal = error
            probe.over.set()
