"""Who makes room in memory for a version: a pure function of what is there.

The rules answer what hurts users of other servers (ollama/ollama#17408, ggml-org/llama.cpp#21678,
#23668, #25326): bytes count and not models, a model that is used or awaited is never thrown out,
and what leaves counts until it has left.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from gemma_server.serving.served_model import ServedModel
from gemma_server.serving.version import ServableVersion, State

# A model that is needed so long without room has its turn: one that was in use all the time takes
# no more requests until it has been there.
TURN_S = 30.0


class Step(NamedTuple):
    """What comes next for a version that is to be loaded.

    load: there is room. wait: for what is leaving, or in use. refuse: there can never be. later: it
    is worth nobody's place. replace: its model's older versions go first. dismiss: the model `who`,
    which is idle, goes. drain: the model `who` goes once its requests have ended.
    """

    kind: Literal["load", "wait", "refuse", "later", "replace", "dismiss", "drain"]
    reason: str = ""
    who: str = ""


def booked_bytes(models: Iterable[ServedModel]) -> int:
    """The memory of all versions, from the start of loading to the end of unloading."""
    return sum(each.booked_bytes for model in models for each in model.versions.values())


def make_room(
    version: ServableVersion,
    going: Sequence[ServableVersion],
    models: Sequence[ServedModel],
    limit: float,
    now: float,
) -> Step:
    """The next step for a version whose bytes are known. `going` are those of its model that it
    replaces, `limit` is in bytes, `now` on the clock of the models."""
    free = limit - booked_bytes(models)
    if version.bytes <= free:
        return Step("load")
    [own] = (model for model in models if model.name == version.name)
    others = [model for model in models if model is not own and booked_bytes([model])]
    movable = [model for model in others if not model.stays]
    most = free + booked_bytes(movable) + sum(each.bytes for each in going)
    if version.bytes > most:
        return Step(
            "refuse",
            f"it needs {in_mb(version.bytes)} of memory, and of {in_mb(limit)} there "
            f"can be {in_mb(max(0, most))} for it; see --memory-limit",
        )
    is_update = own.serving() is not None
    reason = f"{version} needs {in_mb(version.bytes)} of memory, {in_mb(max(0, free))} are free"
    if any(each.state is State.UNLOADING for model in models for each in model.versions.values()):
        return Step("wait", reason)
    if not (own.waiting or is_update or (own.residency and own.residency.pinned)):
        return Step("later", reason)
    if idle := [model for model in movable if model.is_idle]:
        return Step("dismiss", reason, min(idle, key=lambda model: model.used_at).name)
    if going and version.bytes <= free + sum(each.bytes for each in going):
        return Step("replace", reason)
    had_turn = [model for model in movable if model.serving() and model.needed_at + TURN_S <= now]
    if had_turn and own.needed_at + TURN_S <= now:
        return Step("drain", reason, min(had_turn, key=lambda model: model.needed_at).name)
    return Step("wait", reason)


def in_mb(count: float) -> str:
    """Bytes as text for a person."""
    return f"{count / 1e6:,.0f} MB"
