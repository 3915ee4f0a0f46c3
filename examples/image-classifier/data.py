"""The images to learn from: scikit-learn's digits in colours, or CIFAR-10.

Every image is a body as the server takes it, 3,072 bytes (`model.pixels` says of what).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from gemma_server.errors import UsageError
from model import BODY_BYTES, SIDE

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

CIFAR10_LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_RECORD_BYTES = 1 + BODY_BYTES
_TEST_SHARE = 0.2
_DIGIT_SIDE = 28  # which leaves 4 pixels to shift it by
_BRIGHTEST_DIGIT = 16.0


@dataclass(frozen=True)
class Examples:
    """Images and what they show: `bodies` [N, 3072] uint8, `classes` [N], from 0 to 9."""

    bodies: Bytes
    classes: Bytes


@dataclass(frozen=True)
class Data:
    """What to train with, what to test with, and the classes' names."""

    train: Examples
    test: Examples
    labels: tuple[str, ...]


def digits(seed: int = 0, copies: int = 8) -> Data:
    """1,797 handwritten digits; those to train with `copies` times, in other colours and places.

    No digit that is tested with is trained with.
    """
    rng = np.random.default_rng(seed)
    found = load_digits()
    images = np.stack([_enlarged(image) for image in found.images])
    classes = found.target.astype(np.uint8)
    order = rng.permutation(len(images))
    test, train = np.split(order, [round(_TEST_SHARE * len(images))])
    train = np.tile(train, copies)
    return Data(
        Examples(_coloured(images[train], rng), classes[train]),
        Examples(_coloured(images[test], rng), classes[test]),
        tuple(str(name) for name in found.target_names),
    )


def cifar10(folder: Path) -> Data:
    """CIFAR-10 in its binary version: `data_batch_*.bin` and `test_batch.bin`.

    Raises:
        UsageError: the files are not there, or not what they should be.
    """
    batches = [_cifar10_file(path) for path in sorted(folder.glob("data_batch_*.bin"))]
    if not batches:
        raise UsageError(f"{folder}: no data_batch_*.bin; name CIFAR-10's binary version")
    train = Examples(
        np.concatenate([batch.bodies for batch in batches]),
        np.concatenate([batch.classes for batch in batches]),
    )
    return Data(train, _cifar10_file(folder / "test_batch.bin"), CIFAR10_LABELS)


def _enlarged(digit: Floats) -> Floats:
    """[8, 8] from 0 to 16 -> [28, 28] from 0 to 1."""
    image = Image.fromarray((digit / _BRIGHTEST_DIGIT).astype(np.float32))
    larger = image.resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(larger, np.float64)


def _coloured(images: Floats, rng: np.random.Generator) -> Bytes:
    """[N, 28, 28] -> bodies: each image somewhere on a ground.

    In each of red, green and blue, either is dark and the other bright.
    """
    ink = np.zeros((len(images), SIDE, SIDE))
    offsets = rng.integers(0, SIDE - _DIGIT_SIDE, (len(images), 2), endpoint=True)
    for canvas, image, (top, left) in zip(ink, images, offsets, strict=True):
        canvas[top : top + _DIGIT_SIDE, left : left + _DIGIT_SIDE] = image
    colours = np.stack(
        [rng.integers(0, 110, (len(images), 3)), rng.integers(145, 256, (len(images), 3))]
    )
    front, back = rng.permuted(colours, axis=0)[..., None, None]
    planes: Floats = back + (front - back) * ink[:, None]
    return planes.round().astype(np.uint8).reshape(-1, BODY_BYTES)


def _cifar10_file(path: Path) -> Examples:
    """Records of one byte for the class, and a body."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if not content or len(content) % _RECORD_BYTES:
        raise UsageError(f"{path}: {len(content):,} bytes are no records of {_RECORD_BYTES:,}")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
    classes = records[:, 0]
    if classes.max() >= len(CIFAR10_LABELS):
        raise UsageError(f"{path}: a class of {classes.max()}; CIFAR-10 has 0 to 9")
    return Examples(records[:, 1:], classes)
