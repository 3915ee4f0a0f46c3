"""The packaged Gemma 3 270M: real weights, real tokenizer, the engine as it is served."""

import pytest

from gemma_server.engine.request import Cancelled, SamplingParams, Token
from testing.counts import cases
from testing.real import RealModel

pytestmark = pytest.mark.real_model

PROMPTS = [
    f"{opening} {number}"
    for number in range(8)
    for opening in ("Once upon a time", "The recipe needs", "def f(x):", "Die Stadt liegt")
]


def test_the_text_is_sensible(real: RealModel) -> None:
    assert "France" in real.generate("Q: Which country is Paris the capital of?\nA:", 12)
    assert real.generate("One, two, three, four,", 6).startswith(" five, six")
    assert real.generate("A B C D E F", 4).startswith(" G H I J")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_32_clients_at_once_get_what_each_would_get_alone(
    real: RealModel, temperature: float
) -> None:
    """To the bit, so that no token is a matter of company: under the default settings."""
    options = [SamplingParams(temperature=temperature, seed=seed) for seed in range(len(PROMPTS))]
    chosen = list(zip(PROMPTS, options, strict=True))
    alone = [real.read(real.submit(prompt, 20, how)) for prompt, how in chosen[:8]]
    handles = [real.submit(prompt, 20, how) for prompt, how in chosen]
    together = [real.read(handle) for handle in handles]
    assert all(together)
    assert together[:8] == alone


def test_a_seed_gives_the_same_text_in_any_company(real: RealModel) -> None:
    sampling = SamplingParams(temperature=1.0, top_k=50, top_p=0.95, seed=7)
    alone = real.generate("My favourite food is", 16, sampling)
    crowd = [real.submit(prompt, 24) for prompt in PROMPTS[:2]]
    among = real.generate("My favourite food is", 16, sampling)
    for handle in crowd:
        real.read(handle)
    assert among == alone
    other = SamplingParams(temperature=1.0, top_k=50, top_p=0.95, seed=8)
    assert real.generate("My favourite food is", 16, other) != alone


def test_nothing_compiles_after_ready(real: RealModel) -> None:
    before = real.loaded.compilations.programs
    assert before > 0
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=0.7, seed=1),
        SamplingParams(temperature=1.0, top_k=5, top_p=0.5, min_p=0.1, seed=2),
    ]
    most = cases(300, 700)  # words: more than the largest chunk
    for count in (1, 2, 3, 8, 11):
        handles = [
            real.submit("word " * (1 + 97 * i % most), 1 + i % 5, kinds[i % 3])
            for i in range(count)
        ]
        for handle in handles:
            real.read(handle)
    gone = real.submit("cancelled", 50)
    assert isinstance(gone.next_event(60), Token)
    real.engine.cancel(gone)
    while not isinstance(gone.next_event(60), Cancelled):
        pass
    assert real.loaded.compilations.programs == before


def test_a_prompt_of_the_whole_context_is_read_and_answered(real: RealModel) -> None:
    longest = real.engine.context_length - 1
    text = "la " * (longest // 2)
    ids = real.tokenizer.encode(text)
    prompt = "la " * (longest // 2 - (len(ids) - longest))
    assert len(real.read(real.submit(prompt, 500))) >= 1
