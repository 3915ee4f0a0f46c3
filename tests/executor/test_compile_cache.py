"""Programs kept on disk: read instead of compiled, and never a wrong or a damaged one."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_server.executor import compile_cache
from gemma_server.executor.compile_cache import CompileCache, sources
from gemma_server.private_directory import PrivateDirectory
from testing import kept_programs
from testing.counts import cases
from tests.test_imports import MODULES, ours

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


def use_jax_s_own_cache(wanted: bool) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", wanted)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def _without_jax_s_own_cache() -> Iterator[None]:
    use_jax_s_own_cache(False)
    yield
    use_jax_s_own_cache(True)


def test_a_program_is_compiled_once_and_read_after(tmp_path: Path) -> None:
    two = Compiler(2)
    for _ in range(3):
        program = CompileCache(PrivateDirectory(tmp_path), "configuration").get("double", two)
        np.testing.assert_array_equal(program(ONES), 2 * ONES)
        compile_cache._in_use.clear()
    assert two.compiled == 1


def test_a_program_in_use_is_not_read_again(tmp_path: Path) -> None:
    two = Compiler(2)
    program = CompileCache(PrivateDirectory(tmp_path), "").get("double", two)
    for path in tmp_path.iterdir():
        path.unlink()
    assert CompileCache(PrivateDirectory(tmp_path), "").get("double", two) is program
    other = CompileCache(PrivateDirectory(tmp_path), "other").get("double", Compiler(3))
    np.testing.assert_array_equal(other(ONES), 3 * ONES)


def test_another_configuration_or_name_is_another_program(tmp_path: Path) -> None:
    CompileCache(PrivateDirectory(tmp_path), "one").get("scale", Compiler(2))
    for configuration, name in (("other", "scale"), ("one", "other name")):
        program = CompileCache(PrivateDirectory(tmp_path), configuration).get(name, Compiler(3))
        np.testing.assert_array_equal(program(ONES), 3 * ONES)


@pytest.mark.parametrize("damage", [b"", b"not a pickle", None], ids=["empty", "other", "cut"])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    two = Compiler(2)
    CompileCache(PrivateDirectory(tmp_path), "").get("double", two)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(
            CompileCache(PrivateDirectory(tmp_path), "").get("double", two)(ONES), 2 * ONES
        )
    assert "compiling anew" in caplog.text
    assert two.compiled == 2
    CompileCache(PrivateDirectory(tmp_path), "").get("double", two)
    assert two.compiled == 2


def test_one_wrong_bit_anywhere_is_seen_before_it_is_run(tmp_path: Path) -> None:
    """Of machine code with a wrong bit, a start in two would end with SIGSEGV."""
    two = Compiler(2)
    CompileCache(PrivateDirectory(tmp_path), "").get("double", two)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(0, 8 * len(whole), cases(20, 500))
    for times, place in enumerate(places.tolist(), start=2):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        program = CompileCache(PrivateDirectory(tmp_path), "").get("double", two)
        np.testing.assert_array_equal(program(ONES), 2 * ONES)
        assert two.compiled == times
        compile_cache._in_use.clear()


def test_a_disk_that_cannot_be_written_costs_the_next_start_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = PrivateDirectory(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with caplog.at_level(logging.WARNING):
        program = CompileCache(directory, "").get("double", Compiler(2))
    np.testing.assert_array_equal(program(ONES), 2 * ONES)
    assert "cannot be kept" in caplog.text


def test_only_the_configurations_used_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "KEPT", 2)
    compilers = {name: Compiler(2) for name in ("a", "b", "c")}
    for age, name in enumerate(("a", "b", "a", "c")):
        cache = CompileCache(PrivateDirectory(tmp_path), name)
        cache.get("double", compilers[name])
        cache.get("twice", compilers[name])
        for path in tmp_path.glob(f"*-{cache._key}"):
            os.utime(path, (age, age))
    assert len(list(tmp_path.iterdir())) == 4
    for name in ("a", "c", "b"):
        CompileCache(PrivateDirectory(tmp_path), name).get("double", compilers[name])
    assert [compilers[name].compiled for name in "abc"] == [2, 3, 2]


def test_the_key_covers_every_file_that_a_program_is_made_of() -> None:
    """All that the executor imports of this package, and the kernels' sources."""
    modules = {module for module in MODULES if module.startswith("executor")}
    while more := {target for module in modules for target in ours(MODULES[module])} - modules:
        modules |= more & set(MODULES)
    covered = set(sources())
    assert {MODULES[module] for module in modules} <= covered
    assert {path.name for path in covered} >= {"product.cc", "attention.cc", "norm.cc"}


_STARTS = """
import sys, numpy as np, jax
from pathlib import Path
from gemma_server.executor.compile_cache import CompileCache
from gemma_server.private_directory import PrivateDirectory

shape = jax.ShapeDtypeStruct((4, 4), np.float32)
compiled = []

def compile_it():
    compiled.append(1)
    return jax.jit(lambda x: jax.numpy.sort(x * 2) @ x).lower(shape).compile()

program = CompileCache(PrivateDirectory(Path(sys.argv[1])), "").get("double", compile_it)
print(len(compiled), program(np.ones((4, 4), np.float32)).sum())
"""


def starts(directory: Path, **variables: str) -> str:
    """What a new process says of the program: whether it has compiled it, and a result."""
    kept = kept_programs.variables()
    own = {name: value for name, value in os.environ.items() if name not in kept}
    return subprocess.run(
        [sys.executable, "-c", _STARTS, str(directory)],
        env=own | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


def test_a_start_with_another_number_of_devices_has_programs_of_its_own(tmp_path: Path) -> None:
    """Two devices, as `JAX_NUM_CPU_DEVICES` makes them: written by each, read by each."""
    said = [starts(tmp_path, JAX_NUM_CPU_DEVICES=devices) for devices in ("1", "2", "1", "2")]
    assert said == ["1 128.0", "1 128.0", "0 128.0", "0 128.0"]


def test_what_jax_has_in_its_own_cache_is_left_to_it(tmp_path: Path) -> None:
    """Serialized again, such a program could be read but not run."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    said = [starts(tmp_path / which, **variables) for which in ("one", "two", "one", "two")]
    assert said == ["1 128.0", "1 128.0", "0 128.0", "1 128.0"]


def test_numbers_are_kept_for_a_configuration(tmp_path: Path) -> None:
    cache, other = (CompileCache(PrivateDirectory(tmp_path), each) for each in ("one", "other"))
    assert cache.noted("bytes") is None
    cache.note("bytes", 7)
    cache.note("bytes", 8)
    assert CompileCache(PrivateDirectory(tmp_path), "one").noted("bytes") == 8
    assert other.noted("bytes") is None
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert cache.noted("bytes") is None
