"""The oracle's numbers against those of the Hugging Face library, made once and kept.

The transformer's are held against the same ones in test_transformer.py.
"""

import numpy as np
import pytest

from testing.oracle import gemma as oracle
from testing.quality import FAMILY_TOLERANCE, read_family_golden
from testing.tiny import tiny_weights


@pytest.mark.parametrize("name", oracle.PRESETS)
def test_the_oracle_agrees_with_the_library(name: str) -> None:
    ids, logits = read_family_golden(name)
    ours = oracle.logits(oracle.PRESETS[name], tiny_weights(name), ids)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=FAMILY_TOLERANCE)
