"""The oracle's numbers against those of the Hugging Face library, made once and kept.

The transformer's are held against the same ones in test_transformer.py.
"""

import numpy as np
import pytest

from testing.models import NAMES, oracle_logits, read_golden
from testing.quality import FAMILY_TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_agrees_with_the_library(name: str) -> None:
    ids, logits = read_golden(name)
    np.testing.assert_allclose(oracle_logits(name, ids), logits, rtol=0, atol=FAMILY_TOLERANCE)
