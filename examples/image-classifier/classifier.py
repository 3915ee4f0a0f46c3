"""The trained network as a function from bytes to bytes: an image in, what it shows out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import trained
from gemma_server.errors import InvalidRequest
from model import BODY_BYTES, logits


class Classifier:
    """A trained network, ready: its one program, for one image, is compiled and has run.

    Several threads may call it at once.

    Raises:
        ModelLoadError: the directory is not what `trained.save` writes.
    """

    def __init__(self, folder: Path) -> None:
        config, parameters = trained.read(folder)
        network = config.network()

        def classify(bodies: jax.Array) -> jax.Array:
            return jnp.argmax(logits(network, parameters, bodies), axis=-1)

        one = jax.ShapeDtypeStruct((1, BODY_BYTES), jnp.uint8)
        self._classify = jax.jit(classify).lower(one).compile()
        self._answers = [label.encode() for label in config.labels]
        self(bytes(BODY_BYTES))

    def __call__(self, body: bytes) -> bytes:
        """What the image shows, as UTF-8; the body is as `model.pixels` has it.

        Raises:
            InvalidRequest: it has not 3,072 bytes.
        """
        if len(body) != BODY_BYTES:
            raise InvalidRequest(
                f"an image is exactly {BODY_BYTES:,} bytes, the red, the green and the blue plane "
                f"of 32x32 pixels; this body has {len(body):,}"
            )
        found = self._classify(np.frombuffer(body, np.uint8)[None])
        return self._answers[int(found[0])]
