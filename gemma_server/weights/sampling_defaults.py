"""How a checkpoint says that its answers are best sampled."""

from dataclasses import dataclass

from gemma_server.weights.numbers import Numbers


@dataclass(frozen=True)
class SamplingDefaults:
    """What the checkpoint's files recommend; None where they say nothing."""

    temperature: float | None = None  # 0: the likeliest token, always
    top_k: int | None = None  # 0: off
    top_p: float | None = None


def read_sampling(
    number: Numbers,
    temperature: str = "temperature",
    top_k: str = "top_k",
    top_p: str = "top_p",
) -> SamplingDefaults:
    """The defaults under these names.

    Raises:
        ModelLoadError: a value could not be sampled with; the text names it.
    """
    share = number.real_or_none(top_p, None)
    if share is not None and share > 1:
        raise number.wrong(top_p, "more than 1")
    return SamplingDefaults(
        temperature=number.real_or_none(temperature, None, zero=True),
        top_k=number.whole_or_none(top_k),
        top_p=share,
    )
