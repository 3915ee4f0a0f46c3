"""Programs kept on disk: read instead of compiled, and never a wrong or a damaged one."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_server.executor.compile_cache import Executables

pytestmark = pytest.mark.slow


class Compiler:
    """Compiles x * factor, and counts how often."""

    def __init__(self, factor: float) -> None:
        self.factor, self.compiled = factor, 0

    def __call__(self) -> Any:
        import jax

        self.compiled += 1
        shape = jax.ShapeDtypeStruct((4,), np.float32)
        return jax.jit(lambda x: x * self.factor).lower(shape).compile()


ONES = np.ones(4, np.float32)


def test_a_program_is_compiled_once_and_read_after(tmp_path: Path) -> None:
    two = Compiler(2)
    for _ in range(3):
        program = Executables(tmp_path, "configuration").get("double", two)
        np.testing.assert_array_equal(program(ONES), 2 * ONES)
    assert two.compiled == 1


def test_another_configuration_or_name_is_another_program(tmp_path: Path) -> None:
    Executables(tmp_path, "one").get("scale", Compiler(2))
    for configuration, name in (("other", "scale"), ("one", "other name")):
        program = Executables(tmp_path, configuration).get(name, Compiler(3))
        np.testing.assert_array_equal(program(ONES), 3 * ONES)


@pytest.mark.parametrize("damage", [b"", b"not a pickle", None], ids=["empty", "other", "cut"])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    two = Compiler(2)
    Executables(tmp_path, "").get("double", two)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(Executables(tmp_path, "").get("double", two)(ONES), 2 * ONES)
    assert "compiling anew" in caplog.text
    assert two.compiled == 2
    Executables(tmp_path, "").get("double", two)
    assert two.compiled == 2


def test_a_disk_that_cannot_be_written_costs_the_next_start_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        program = Executables(tmp_path / "file" / "below", "").get("double", Compiler(2))
    np.testing.assert_array_equal(program(ONES), 2 * ONES)
    assert "cannot be kept" in caplog.text
