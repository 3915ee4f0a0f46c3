"""On a GPU: bfloat16 and attention over the whole cache at once, with the real weights."""

import pytest

from gemma_server.engine.request import SamplingParams
from testing.real import load_real_model

pytestmark = pytest.mark.gpu


def test_the_real_model_runs_in_bfloat16_and_makes_sense() -> None:
    import jax

    assert jax.default_backend() == "gpu"
    real = load_real_model()
    assert real.loaded.device.startswith("GPU")
    assert real.generate("One, two, three, four,", 6).startswith(" five, six")
    before = real.loaded.compilations.programs
    sampling = SamplingParams(temperature=1.0, top_k=50, top_p=0.95, seed=7)
    alone = real.generate("My favourite food is", 16, sampling)
    handles = [real.submit(f"Number {i} is", 16) for i in range(12)]
    assert real.generate("My favourite food is", 16, sampling) == alone
    for handle in handles:
        assert real.read(handle)
    assert real.loaded.compilations.programs == before
    real.engine.stop()
