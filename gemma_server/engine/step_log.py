"""A runner that notes when each step began and ended, for the benchmark."""

import time
from dataclasses import dataclass

from gemma_server.engine.plan import PendingStep, Plan, Runner, StepResult


@dataclass(frozen=True)
class Step:
    """One executed plan; moments in seconds of the performance counter."""

    plan: Plan
    dispatched: float  # the device has it
    ended: float  # its result has been read


class StepLog:
    """The steps of one runner, in their order. Read it while its engine is idle."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def around(self, runner: Runner) -> Runner:
        """The runner, wrapped so that this log notes its steps."""
        return _TimedRunner(runner, self.steps)


class _TimedRunner:
    def __init__(self, runner: Runner, steps: list[Step]) -> None:
        self._runner, self._steps = runner, steps

    def dispatch(self, plan: Plan) -> "_TimedStep":
        pending = self._runner.dispatch(plan)
        return _TimedStep(plan, pending, time.perf_counter(), self._steps)

    def touch(self) -> None:
        self._runner.touch()


class _TimedStep:
    def __init__(
        self, plan: Plan, pending: PendingStep, dispatched: float, steps: list[Step]
    ) -> None:
        self._plan, self._pending = plan, pending
        self._dispatched, self._steps = dispatched, steps

    def read(self) -> StepResult:
        result = self._pending.read()
        self._steps.append(Step(self._plan, self._dispatched, time.perf_counter()))
        return result
