"""Trains the classifier and keeps it as a directory, which `trained.py` describes.

    .venv/bin/python examples/image-classifier/train.py
    .venv/bin/python examples/image-classifier/train.py --cifar10 cifar-10-batches-bin

Some images go with it that it was not trained with, one of each class, to try it with.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import data
import trained
from data import Bytes, Data, Examples
from gemma_server.errors import UsageError
from model import BODY_BYTES, SIDE, Network, Parameters, logits
from trained import Config

DEFAULT_OUT = Path(__file__).parent / "trained"
_BATCH = 128
_TEST_BATCH = 500
_RATE = 2e-3  # the highest: it rises in the first tenth of the steps, and falls to 0 in the others

Step = Callable[
    [Parameters, optax.OptState, Bytes, Bytes], tuple[Parameters, optax.OptState, jax.Array]
]


def main() -> None:
    """Train, say how it goes, and keep what was learnt."""
    parser = argparse.ArgumentParser(prog="train.py", description="train the image classifier")
    parser.add_argument("--cifar10", type=Path, metavar="DIRECTORY", help="instead of the digits")
    parser.add_argument("--epochs", type=int, default=6, help="default: 6")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIRECTORY",
        help="default: trained, beside this file",
    )
    options = parser.parse_args()
    if options.epochs < 1:
        parser.error("--epochs: at least 1")
    images = options.out / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)  # better now than after minutes
        found = data.cifar10(options.cifar10) if options.cifar10 else data.digits(options.seed)
    except (UsageError, OSError) as error:
        parser.error(str(error))
    config = Config(found.labels)
    parameters = train(found, config.network(), options.epochs, options.seed, _print)
    trained.save(options.out, config, parameters)
    write_images(found, images)
    print(f"kept in {options.out}")


def train(
    found: Data, network: Network, epochs: int, seed: int, report: Callable[[str], None]
) -> Parameters:
    """The parameters after so many rounds over all images; `report` gets a line after each."""
    batch = min(_BATCH, len(found.train.classes))
    optimiser = _optimiser(epochs * (len(found.train.classes) // batch))
    step = _step(network, optimiser)
    blank = jnp.zeros((1, BODY_BYTES), jnp.uint8)
    parameters: Parameters = network.init(jax.random.key(seed), blank)["params"]
    state = optimiser.init(parameters)
    rng = np.random.default_rng(seed)
    began = time.monotonic()
    for epoch in range(1, epochs + 1):
        losses = []
        for bodies, classes in _batches(found.train, batch, rng):
            parameters, state, loss = step(parameters, state, bodies, classes)
            losses.append(float(loss))
        report(
            f"round {epoch} of {epochs}: loss {np.mean(losses):.3f}, test accuracy "
            f"{accuracy(network, parameters, found.test):.1%}, {time.monotonic() - began:.0f} s"
        )
    return parameters


def accuracy(network: Network, parameters: Parameters, examples: Examples) -> float:
    """The share of the examples whose class the network finds."""
    right = 0
    for start in range(0, len(examples.classes), _TEST_BATCH):
        part = slice(start, start + _TEST_BATCH)
        found = logits(network, parameters, jnp.asarray(examples.bodies[part])).argmax(axis=-1)
        right += int((found == examples.classes[part]).sum())
    return right / len(examples.classes)


def write_images(found: Data, folder: Path) -> None:
    """Write an image of each class, from those not trained with, as LABEL.png."""
    for number, label in enumerate(found.labels):
        for body in found.test.bodies[found.test.classes == number][:1]:
            image = body.reshape(3, SIDE, SIDE).transpose(1, 2, 0)
            Image.fromarray(image).save(folder / f"{label}.png")


def _optimiser(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, _RATE, steps // 10, steps))


def _step(network: Network, optimiser: optax.GradientTransformation) -> Step:
    def loss_of(parameters: Parameters, bodies: jax.Array, classes: jax.Array) -> jax.Array:
        found = logits(network, parameters, bodies)
        losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(found, classes)
        return losses.mean()

    @jax.jit
    def step(
        parameters: Parameters, state: optax.OptState, bodies: jax.Array, classes: jax.Array
    ) -> tuple[Parameters, optax.OptState, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, bodies, classes)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(parameters, updates), state, loss

    return step


def _batches(
    examples: Examples, size: int, rng: np.random.Generator
) -> Iterator[tuple[Bytes, Bytes]]:
    """All examples in random order, but for those left over from the last whole batch."""
    order = rng.permutation(len(examples.classes))
    for rows in order[: len(order) // size * size].reshape(-1, size):
        yield examples.bodies[rows], examples.classes[rows]


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
