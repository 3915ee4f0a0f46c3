"""Answers of the real model that have to be something: what ends is what it has to be."""

import json
from typing import Any

import jsonschema_rs
import pytest

from gemma_server.engine.request import Finished, Request, SamplingParams, Token
from gemma_server.text import grammar
from testing.counts import cases
from testing.real import RealModel
from testing.schemas import random_schemas

pytestmark = pytest.mark.real_model

STEPS = 40
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def submit(real: RealModel, prompt: str, schema: Any, how: SamplingParams) -> Any:
    ids = tuple(real.tokenizer.encode(prompt))
    constraint = None if schema is None else real.loaded.grammars.start(grammar.of_schema(schema))
    steps = STEPS if schema is not None else STEPS // 2
    request = Request(ids, steps, how, real.tokenizer.stop_ids, constraint=constraint)
    [handle] = real.engine.submit([request])
    return handle


def read(real: RealModel, handle: Any) -> tuple[str, str]:
    """The text, and why it ended."""
    ids: list[int] = []
    while True:
        match handle.next_event(60):
            case Token(token):
                ids.append(token)
            case Finished(reason):
                return real.tokenizer.decode(ids), reason
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_ends_fits_its_schema(real: RealModel, temperature: float) -> None:
    """Eight schemas in every run, and 400 of them with --long."""
    ended, schemas = 0, list(random_schemas(cases(8, 400)))
    for first in range(0, len(schemas), 8):
        some, how = schemas[first : first + 8], SamplingParams(temperature, seed=first)
        handles = [submit(real, "Some JSON: ", schema, how) for schema in some]
        for schema, handle in zip(some, handles, strict=True):
            text, reason = read(real, handle)
            if reason == "stop":
                ended += 1
                value = json.loads(text)
                assert jsonschema_rs.is_valid(schema, value, validate_formats=True), text
    assert ended >= len(schemas) / 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_and_other_clients_get_what_each_would_get_alone(
    real: RealModel, temperature: float
) -> None:
    """To the bit, half of them constrained: 16 clients, or 32 with --long."""
    hows = [SamplingParams(temperature, seed=number) for number in range(cases(16, 32))]
    wanted = [
        (f"Person {number}: ", PERSON if number % 2 else None, how)
        for number, how in enumerate(hows)
    ]
    alone = [read(real, submit(real, *each)) for each in wanted[:4]]
    handles = [submit(real, *each) for each in wanted]
    together = [read(real, handle) for handle in handles]
    assert together[:4] == alone
    for (text, reason), (_, schema, _) in zip(together, wanted, strict=True):
        if schema is not None and reason == "stop":
            assert jsonschema_rs.is_valid(schema, json.loads(text))
