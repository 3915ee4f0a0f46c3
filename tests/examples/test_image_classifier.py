"""The image classifier: its images, its network held against NumPy, and what it refuses."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import data
import train
import trained
from classifier import Classifier
from gemma_server.errors import InvalidRequest, ModelLoadError, UsageError
from gemma_server.executor.compile_counter import CompileCounter
from model import BODY_BYTES, Network, Parameters, logits, pixels
from trained import Config

FOLDER = Path(data.__file__).parent
SMALL = Config(("cat", "dög", "ship"), channels=(4, 5), hidden=6)

Array = npt.NDArray[Any]


def random_bodies(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, BODY_BYTES), np.uint8)


def random_parameters(network: Network, seed: int = 0) -> Parameters:
    """Biases too, which begin as zeros."""
    rng = np.random.default_rng(seed)
    blank = jax.ShapeDtypeStruct((1, BODY_BYTES), jnp.uint8)
    shapes = jax.eval_shape(network.init, jax.random.key(0), blank)["params"]

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        drawn: Array = rng.normal(0, spread, leaf.shape).astype(np.float32)
        return drawn

    parameters: Parameters = jax.tree.map(draw, shapes)
    return parameters


# --- the oracle ----------------------------------------------------------------------------------


def oracle_pixels(bodies: Array) -> Array:
    """Byte by byte, as the README has it."""
    image = np.empty((len(bodies), 32, 32, 3))
    for plane in range(3):
        for row in range(32):
            for column in range(32):
                byte = bodies[:, plane * 1024 + row * 32 + column]
                image[:, row, column, plane] = byte / 255 * 2 - 1
    return image


def oracle_logits(config: Config, parameters: Parameters, bodies: Array) -> Array:
    """The network in float64: sums over shifted images, maxima over corners of 2x2, products."""
    x = oracle_pixels(bodies)
    for layer in range(len(config.channels)):
        x = np.maximum(convolution(x, **parameters[f"conv_{layer}"]), 0)
        x = np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    hidden = np.maximum(dense(x.reshape(len(x), -1), **parameters["hidden"]), 0)
    return dense(hidden, **parameters["logits"])


def convolution(x: Array, kernel: Array, bias: Array) -> Array:
    """3x3 with a border of zeros: each pixel sees its neighbours through the kernel as it is."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = (
        padded[:, row : row + height, column : column + width] @ kernel[row, column].astype(float)
        for row in range(3)
        for column in range(3)
    )
    total: Array = sum(shifted, start=bias.astype(float))
    return total


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    product: Array = x @ kernel.astype(float) + bias
    return product


# --- the network ---------------------------------------------------------------------------------


def test_pixels_by_hand() -> None:
    body = np.zeros(BODY_BYTES, np.uint8)
    body[0] = 255  # red: the first pixel
    body[1024 + 33] = 51  # green: second row, second column
    body[2048 + 31] = 204  # blue: the end of the first row
    expected = np.full((1, 32, 32, 3), -1.0)
    expected[0, 0, 0, 0] = 1.0
    expected[0, 1, 1, 1] = -0.6
    expected[0, 0, 31, 2] = 0.6
    found = pixels(jnp.asarray(body[None]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pixels_agree_with_the_oracle() -> None:
    bodies = random_bodies(3)
    np.testing.assert_allclose(pixels(jnp.asarray(bodies)), oracle_pixels(bodies), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, Config(data.CIFAR10_LABELS)], ids=["small", "default"])
def test_the_network_agrees_with_the_oracle(config: Config) -> None:
    network = config.network()
    parameters = random_parameters(network)
    bodies = random_bodies(4)
    found = logits(network, parameters, jnp.asarray(bodies))
    assert found.dtype == jnp.float32
    expected = oracle_logits(config, parameters, bodies)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- the images ----------------------------------------------------------------------------------


def test_the_digits_are_what_scikit_learn_has() -> None:
    digits = data.digits(copies=2)
    assert digits.labels == tuple("0123456789")
    assert digits.test.bodies.shape == (359, BODY_BYTES)
    assert digits.train.bodies.shape == (2 * (1797 - 359), BODY_BYTES)
    for examples in (digits.train, digits.test):
        assert examples.bodies.dtype == np.uint8
        assert set(examples.classes) == set(range(10))


def test_digits_depend_on_the_seed_alone() -> None:
    first, again, other = data.digits(1, 1), data.digits(1, 1), data.digits(2, 1)
    np.testing.assert_array_equal(first.train.bodies, again.train.bodies)
    np.testing.assert_array_equal(first.test.bodies, again.test.bodies)
    assert (first.test.bodies != other.test.bodies).any()


@pytest.fixture
def ten_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the digits, ten full squares, each of a class of its own."""
    found = SimpleNamespace(
        images=np.full((10, 8, 8), 16.0), target=np.arange(10), target_names=np.arange(10)
    )
    monkeypatch.setattr(data, "load_digits", lambda: found)


@pytest.mark.usefixtures("ten_squares")
def test_no_digit_is_both_trained_and_tested_with() -> None:
    digits = data.digits(copies=3)
    assert len(digits.test.classes) == 2
    trained_with, times = np.unique(digits.train.classes, return_counts=True)
    assert (times == 3).all()
    assert sorted([*trained_with, *digits.test.classes]) == list(range(10))


@pytest.mark.usefixtures("ten_squares")
def test_digits_differ_in_place_and_colour_and_stand_out() -> None:
    images = data.digits(copies=20).train.bodies.reshape(-1, 3, 32, 32).astype(int)
    corners = images[:, :, ::31, ::31]
    middle = images[:, :, 16, 16]
    away = np.abs(corners - middle[..., None, None]) > 0  # the corner is not under the square
    places = {tuple(place) for place in away.any(axis=1).reshape(-1, 4)}
    assert len(places) > 3
    assert len({tuple(colour) for colour in middle}) > 100
    ground = np.where(away, corners, middle[..., None, None])
    assert np.abs(ground - middle[..., None, None]).max(axis=(2, 3)).min() >= 35


def write_cifar10(folder: Path, name: str, classes: list[int]) -> Array:
    """A file with one record for each class, and its bodies."""
    bodies = random_bodies(len(classes), seed=len(name))
    records = (bytes([value]) + body.tobytes() for value, body in zip(classes, bodies, strict=True))
    (folder / name).write_bytes(b"".join(records))
    return bodies


def test_cifar10_as_its_files_have_it(tmp_path: Path) -> None:
    second = write_cifar10(tmp_path, "data_batch_2.bin", [9])
    first = write_cifar10(tmp_path, "data_batch_1.bin", [3, 0])
    test = write_cifar10(tmp_path, "test_batch.bin", [8])
    found = data.cifar10(tmp_path)
    np.testing.assert_array_equal(found.train.bodies, [*first, *second])
    np.testing.assert_array_equal(found.train.classes, [3, 0, 9])
    np.testing.assert_array_equal(found.test.bodies, test)
    names = [found.labels[number] for number in (3, 0, 9, *found.test.classes)]
    assert names == ["cat", "airplane", "truck", "ship"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "data_batch_1.bin").unlink(), "no data_batch"),
        (lambda folder: (folder / "test_batch.bin").unlink(), "test_batch.bin: cannot be read"),
        (lambda folder: (folder / "test_batch.bin").write_bytes(b""), "test_batch.bin: 0 bytes"),
        (lambda folder: (folder / "data_batch_1.bin").write_bytes(bytes(4000)), "4,000 bytes"),
        (lambda folder: write_cifar10(folder, "test_batch.bin", [1, 10]), "a class of 10"),
    ],
    ids=["no batch", "no test batch", "empty", "cut", "another data set"],
)
def test_what_is_not_cifar10_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    write_cifar10(tmp_path, "data_batch_1.bin", [1])
    write_cifar10(tmp_path, "test_batch.bin", [1])
    spoil(tmp_path)
    with pytest.raises(UsageError, match=complaint):
        data.cifar10(tmp_path)


# --- the directory -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network with random parameters, as if it had been trained."""
    path = tmp_path / "trained"
    trained.save(path, SMALL, random_parameters(SMALL.network()))
    return path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_saved_is_read(folder: Path) -> None:
    config, parameters = trained.read(folder)
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, parameters, random_parameters(SMALL.network()))


def test_saving_again_replaces_what_was_there(folder: Path) -> None:
    other = Config(("a", "b"), channels=(3,), hidden=2)
    expected = random_parameters(other.network(), seed=1)
    trained.save(folder, other, expected)
    config, parameters = trained.read(folder)
    assert config == other
    jax.tree.map(np.testing.assert_array_equal, parameters, expected)


def test_sha256sum_reads_the_checksums(folder: Path) -> None:
    checking = ["sha256sum", "--check", "--strict", "checksums.txt"]
    done = subprocess.run(checking, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files(folder)) - 1


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "changed"])
def test_a_damaged_file_is_named(folder: Path, how: str) -> None:
    for path in files(folder):
        content = path.read_bytes()
        middle = len(content) // 2
        if how == "missing":
            path.unlink()
        elif how == "changed":
            flipped = bytes([content[middle] ^ 1])
            path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        else:
            path.write_bytes(content[:middle] if how == "cut" else b"")
        named = folder if path.name == "checksums.txt" else path
        with pytest.raises(ModelLoadError, match=f"^{re.escape(str(named))}.*train again"):
            trained.read(folder)
        path.write_bytes(content)
    trained.read(folder)


def test_a_missing_directory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nowhere: no such directory; train again"):
        Classifier(tmp_path / "nowhere")


def test_a_config_of_another_version_is_refused(folder: Path) -> None:
    config, checksums = folder / "config.json", folder / "checksums.txt"
    before = hashlib.sha256(config.read_bytes()).hexdigest()
    config.write_text('{"labels": ["a"], "hidden": "wide"}')
    after = hashlib.sha256(config.read_bytes()).hexdigest()
    checksums.write_text(checksums.read_text().replace(before, after))
    with pytest.raises(ModelLoadError, match=r"config\.json: of another version; train again"):
        trained.read(folder)


# --- the classifier ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_classifier_answers_as_the_oracle_does_from_many_threads(folder: Path) -> None:
    bodies = random_bodies(64)
    bodies[::2] //= 8  # dark ones, or one class would do for all
    best = oracle_logits(SMALL, random_parameters(SMALL.network()), bodies).argmax(axis=-1)
    assert len(set(best)) > 1
    classify = Classifier(folder)
    compilations = CompileCounter()

    def classify_one(body: bytes) -> bytes:
        with compilations.blamed():
            return classify(body)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(classify_one, [body.tobytes() for body in bodies]))
    assert found == [SMALL.labels[number].encode() for number in best]
    assert compilations.programs == 0


@pytest.mark.slow
def test_a_body_of_another_size_is_refused(folder: Path) -> None:
    classify = Classifier(folder)
    for size in (0, 1, BODY_BYTES - 1, BODY_BYTES + 1, 1 << 20):
        with pytest.raises(InvalidRequest, match=rf"exactly 3,072 bytes.* has {size:,}$"):
            classify(bytes(size))


# --- training ------------------------------------------------------------------------------------


def run_train(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(FOLDER / "train.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def body_of(image: Path) -> bytes:
    """The PNG file's planes, pixel by pixel."""
    with Image.open(image) as opened:
        assert opened.size == (32, 32)
        assert opened.mode == "RGB"
        colours = [opened.getpixel((x, y)) for y in range(32) for x in range(32)]
    return np.array(colours, np.uint8).T.tobytes()


@pytest.mark.slow
def test_a_little_training_learns_the_digits() -> None:
    digits = data.digits(copies=1)
    network = Config(digits.labels, channels=(16, 32), hidden=64).network()
    said: list[str] = []
    parameters = train.train(digits, network, epochs=9, seed=0, report=said.append)
    found = logits(network, parameters, jnp.asarray(digits.test.bodies)).argmax(axis=-1)
    right = float((found == digits.test.classes).mean())
    assert right > 0.4  # by chance, 0.1
    assert len(said) == 9
    assert f"test accuracy {right:.1%}" in said[-1]


@pytest.mark.slow
def test_the_command_leaves_what_the_classifier_opens_and_images_for_it(tmp_path: Path) -> None:
    write_cifar10(tmp_path, "data_batch_1.bin", list(range(10)))
    bodies = write_cifar10(tmp_path, "test_batch.bin", [7, 3, 3])
    out = tmp_path / "new" / "trained"
    done = run_train("--cifar10", tmp_path, "--epochs", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for number, line in enumerate(lines[:-1], start=1):
        assert re.fullmatch(
            rf"round {number} of 2: loss [\d.]+, test accuracy [\d.]+%, \d+ s", line
        )
    assert lines[-1] == f"kept in {out}"
    assert Classifier(out)(bytes(BODY_BYTES)).decode() in data.CIFAR10_LABELS
    images = {image.stem: body_of(image) for image in (out / "images").iterdir()}
    assert images == {"horse": bodies[0].tobytes(), "cat": bodies[1].tobytes()}


@pytest.mark.slow
def test_training_that_cannot_work_ends_with_code_2(tmp_path: Path) -> None:
    done = run_train("--cifar10", tmp_path, "--out", tmp_path / "trained")
    assert done.returncode == 2
    assert "no data_batch_*.bin" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--epochs", "0"), "--epochs: at least 1"),
        (("--out", "file"), "Not a directory"),
    ],
)
def test_training_says_at_once_what_cannot_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
