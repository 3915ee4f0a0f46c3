"""Random JSON schemas of many shapes, each with a value that fits it."""

import random
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_PATTERNS = ("^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "^(ja|nein)$", "^[A-Z][a-zé]*$", "x+y?")
_FORMATS = ("date", "time", "date-time", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_FORMATS_TOO = ("duration", "int32")  # the last is a remark
_NAMES = ("name", "größe", "b-2", "a b", "items", "type", "数", 'q"q', "x/y", "~")
_TREE: Schema = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
    },
    "required": ["value", "left"],
    "additionalProperties": False,
}
_LIST: Schema = {"type": "array", "items": {"$ref": "#/$defs/list"}, "maxItems": 2}


def random_schemas(count: int, seed: int = 0) -> Iterator[Schema]:
    """So many schemas, the same for a seed."""
    rng = random.Random(seed)
    for _ in range(count):
        schema = _any(rng, 0)
        yield {**schema, "$defs": {"tree": _TREE, "list": _LIST}}


def _any(rng: random.Random, depth: int) -> Schema:
    kinds = [_string, _number, _integer, _choice, _constant, _pattern, _format]
    if depth < 3:
        kinds += [_object, _object, _object, _array, _array, _tuple, _union, _reference, _both]
    schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.1:
        schema["description"] = "a remark"
    return schema


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randrange(0, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    match rng.randrange(4):
        case 0:
            schema["additionalProperties"] = _number(rng, depth)
        case 1 | 2:
            schema["additionalProperties"] = False
    if rng.random() < 0.15:
        schema["patternProperties"] = {"^p_[a-z]{1,3}$": _integer(rng, depth)}
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(3)
    return {
        "type": "array",
        "items": _any(rng, depth + 1),
        "minItems": least,
        "maxItems": least + rng.randrange(3),
    }


def _tuple(rng: random.Random, depth: int) -> Schema:
    items = [_any(rng, depth + 1) for _ in range(rng.randrange(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _union(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth + 1) for _ in range(rng.randrange(2, 4))]}


def _both(rng: random.Random, depth: int) -> Schema:
    low, high = sorted(rng.sample(range(-50, 50), 2))
    return {"type": "integer", "allOf": [{"minimum": low}, {"maximum": high}]}


def _reference(rng: random.Random, depth: int) -> Schema:
    return {"$ref": f"#/$defs/{rng.choice(('tree', 'list'))}"}


def _string(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(4)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(8)}


def _pattern(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(_PATTERNS), "maxLength": 12}


def _format(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice((*_FORMATS, *_FORMATS_TOO))}


def _integer(rng: random.Random, depth: int) -> Schema:
    low, high = sorted(rng.sample(range(-1000, 1000), 2))
    bounds = {"minimum": low, "exclusiveMaximum": high + 1}
    schema: Schema = {"type": "integer", **{k: v for k, v in bounds.items() if rng.random() < 0.8}}
    if rng.random() < 0.2:
        return {"type": "integer", "minimum": 0, "maximum": 700, "multipleOf": 7}
    return schema


def _number(rng: random.Random, depth: int) -> Schema:
    low, high = sorted((round(rng.uniform(-9, 9), 2), round(rng.uniform(-9, 9), 2)))
    return {"type": "number", "exclusiveMinimum": low, "maximum": round(high + 1, 2)}


def _choice(rng: random.Random, depth: int) -> Schema:
    values = [1, 2.5, "rot", "grün", None, True, {"a": [1]}, [], "", "a\nb", "\U0001f600"]
    return {"enum": rng.sample(values, rng.randrange(1, 5))}


def _constant(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice([0, "x", None, [1, "2"], {"k": {}}])}
