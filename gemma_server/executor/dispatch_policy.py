"""How host and device share the work: the few things that a GPU wants otherwise than a CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DispatchPolicy:
    """What a device is asked at once, and how long before the answer is looked at."""

    steps: int  # tokens that a row samples in one plan
    max_in_flight: int  # plans with the device at once
    branches: bool  # programs decide by their data what to leave out


# A step is long beside a dispatch: blocks would only hold tokens back, and XLA:CPU would convert
# the weights ahead of a loop, all at once. A second plan in flight would hide a tenth of a
# millisecond a step, and cost a whole step behind each end.
ON_CPU = DispatchPolicy(steps=1, max_in_flight=1, branches=True)

# A step is short beside a dispatch, and where control flow follows data the host has to wait for
# them: the host decides instead, before it dispatches.
ON_GPU = DispatchPolicy(steps=8, max_in_flight=2, branches=False)
