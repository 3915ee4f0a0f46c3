"""The network: a small convolutional one for images of 32x32 pixels, each with red, green, blue."""

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

SIDE = 32  # pixels
BODY_BYTES = 3 * SIDE * SIDE

Parameters = Mapping[str, Any]  # layer -> "kernel" and "bias" -> array, as Flax has it


class Network(nn.Module):
    """3x3 convolutions, each with ReLU and the maximum of 2x2 pixels, then two dense layers."""

    channels: tuple[int, ...]
    hidden: int
    classes: int

    @nn.compact
    def __call__(self, bodies: jax.Array) -> jax.Array:
        """[B, 3072] uint8, as `pixels` takes them -> [B, classes] logits in f32."""
        x = pixels(bodies)
        for layer, features in enumerate(self.channels):
            x = nn.relu(nn.Conv(features, (3, 3), name=f"conv_{layer}")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.classes, name="logits")(x)


def logits(network: Network, parameters: Parameters, bodies: jax.Array) -> jax.Array:
    """What the network with these parameters makes of the bodies; shapes as in `Network`."""
    return cast(jax.Array, network.apply({"params": parameters}, bodies))


def pixels(bodies: jax.Array) -> jax.Array:
    """[B, 3072] uint8 -> [B, 32, 32, 3] f32 from -1 to 1.

    A body is the red plane, then the green, then the blue; a plane is 32 rows from the top, each
    32 pixels from the left.
    """
    planes = bodies.reshape(-1, 3, SIDE, SIDE)
    return planes.transpose(0, 2, 3, 1).astype(jnp.float32) / 127.5 - 1.0
