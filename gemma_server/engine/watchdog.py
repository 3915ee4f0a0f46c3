"""When a step has taken so long that the device has to be taken for hung."""

from dataclasses import dataclass

_LONGEST_STEPS = 20.0
_LEAST_S = 30.0
_SLOW = 1 / 3  # of the time until it is taken for hung


@dataclass
class StepTimes:
    """The longest step yet, and the bounds that follow from it.

    `given_s` is the operator's bound in seconds; by default it is 20 times the longest step, and 30
    seconds at least: a step takes milliseconds on a GPU, and half a minute of the largest model on
    a CPU.
    """

    longest_s: float = 0.0
    given_s: float | None = None

    def took(self, seconds: float) -> None:
        """A step has ended; one that is over the bound was not slow, the process was paused."""
        if seconds < self.hung_after_s:
            self.longest_s = max(self.longest_s, seconds)

    @property
    def hung_after_s(self) -> float:
        """A step of so many seconds will not end: all requests fail, and the process with them."""
        if self.given_s is not None:
            return self.given_s
        return max(_LEAST_S, _LONGEST_STEPS * self.longest_s)

    @property
    def slow_after_s(self) -> float:
        """After so many seconds of a step no new request is taken."""
        return _SLOW * self.hung_after_s
