"""How host and device share the work: the few choices that differ between GPU and CPU."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DispatchPolicy:
    """How much work a plan has, how many plans are in flight, and where branches are taken."""

    steps: int  # tokens that a row samples in one plan
    max_in_flight: int  # plans
    branches: bool  # programs skip work depending on their data
    chunks: tuple[int, ...]  # sizes of the prefill programs in prompt tokens, the largest last
    gap_s: float | None  # wanted between two tokens of a row while a prompt is read; None: whatever


# A step is long compared with a dispatch: several steps a plan would only delay tokens, and XLA:CPU
# would convert all weights at once before the loop. A second plan in flight would save a tenth of a
# millisecond a step, and waste a whole step after each answer's end. A chunk of a prompt is longer
# still: rows that decode want short ones, and 128 tokens take no longer each than more would.
ON_CPU = DispatchPolicy(
    steps=1, max_in_flight=1, branches=True, chunks=(8, 16, 32, 128), gap_s=0.08
)

# A step is short compared with a dispatch. Control flow that depends on data would make the host
# wait for the data: the host chooses a program before it dispatches instead.
ON_GPU = DispatchPolicy(
    steps=8, max_in_flight=2, branches=False, chunks=(8, 32, 128, 256), gap_s=None
)
