"""The flat tree of Kaggle's releases, laid out as the other Orbax checkpoints of Gemma are."""

from typing import Any

import numpy as np

from testing.tiny import Weights

Tree = dict[str, Any]
_BARE = {"linear": 2, "gating_einsum": 3}  # their axes


def nested(weights: Weights) -> Tree:
    """Dicts within dicts, as DeepMind's `save_params` writes: no outer name, bare MLP leaves."""
    tree: Tree = {}
    for path, leaves in weights.items():
        *parents, last = path.removeprefix("transformer/").split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        # Those of experts have an axis more, and are no bare leaves.
        is_bare = last in _BARE and leaves["w"].ndim == _BARE[last]
        node[last] = leaves["w"] if is_bare else dict(leaves)
    return tree


def stacked(weights: Weights, period: int) -> Tree:
    """Layers of the same place in the pattern on one leading axis."""
    tree: Tree = {path: leaves for path, leaves in weights.items() if "/layer_" not in path}
    stacks: dict[tuple[str, str], dict[int, Any]] = {}
    for path, leaves in weights.items():
        if "/layer_" in path:
            _, layer, *rest = path.split("/", 2)
            index = int(layer.removeprefix("layer_"))
            place = f"transformer/stacked_layers/attention_type_{index % period}"
            target = "/".join((place, *rest))
            for leaf, array in leaves.items():
                stacks.setdefault((target, leaf), {})[index] = array
    for (target, leaf), arrays in stacks.items():
        tree.setdefault(target, {})[leaf] = np.stack([arrays[i] for i in sorted(arrays)])
    return tree


def training(weights: Weights) -> Tree:
    """A trainer's dump: the weights, and moments under the same names."""
    params = nested(weights)
    return {
        "collections": {},
        "opt_state": {"mu": nested(weights), "count": np.zeros((), np.int32)},
        "params": params,
        "step": np.array(7, np.int32),
    }


def prefixed(weights: Weights, prefix: str = "rlx_networks/policy_network") -> Tree:
    """A post-training dump: the nested tree further down."""
    tree: Tree = nested(weights)
    for name in reversed(prefix.split("/")):
        tree = {name: tree}
    return tree


def with_vision(weights: Weights) -> Tree:
    """The flat tree of a model that also sees."""
    return {
        **weights,
        "SigLiPFromPatches_0/siglip_encoder/embedding": {"kernel": np.ones((4, 4), np.float32)},
        "transformer/embedder/mm_input_projection": {"w": np.ones((4, 4), np.float32)},
        "transformer/embedder/mm_soft_embedding_norm": {"scale": np.ones(4, np.float32)},
    }
