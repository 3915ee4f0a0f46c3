"""How host and device share the work: the few things that a GPU wants otherwise than a CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """What a device is asked at once, and how long before the answer is looked at."""

    steps: int  # tokens that a row draws in one plan
    ahead: int  # plans with the device beside the one whose result is awaited
    branches: bool  # programs decide by their data what to leave out


# A step is long beside a dispatch: blocks would only hold tokens back, and XLA:CPU would convert
# the weights ahead of a loop, all at once. To run ahead would hide a tenth of a millisecond a step,
# and cost a whole one behind each end.
ON_CPU = Pace(steps=1, ahead=0, branches=True)

# A step is short beside a dispatch, and where control flow follows data the host has to wait for
# them: the host decides instead, before it dispatches.
ON_GPU = Pace(steps=8, ahead=1, branches=False)
