"""Grammars as llguidance takes them, made from what clients ask for.

What llguidance knows of JSON Schema: guidance-ai/llguidance, `docs/json_schema.md`.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from gemma_server.errors import GrammarRefused
from gemma_server.text.chat import Tool

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_MOST_CHARACTERS, _DEEPEST = 1 << 16, 32
# White space: neither free, since small models loop in it, nor none, which they are not used to. A
# text has one spelling, or a key could come twice, once as "\\u0061".
_OPTIONS: Any = {
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,8}",
    "json_allowed_escapes": '"\\bfnrt',
}
_LARGEST_MULTIPLE = 10_000  # of all in a schema, multiplied: an automaton has so many states
_MOST_PROBES = 50  # in the search for the part of a schema that is at fault
_OWN_OPTIONS = "x-guidance"  # in which a client could change the above
# Words that ask for nothing with these values; llguidance refuses them with any.
_HARMLESS: Mapping[str, Any] = {
    **{"uniqueItems": False, "minContains": 0, "unevaluatedProperties": True},
    **{"unevaluatedItems": True, "dependentRequired": {}, "dependentSchemas": {}},
}
# Formats that JSON Schema defines: others are remarks, which it says to ignore.
_FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "idn-email", "hostname"),
        *("idn-hostname", "ipv4", "ipv6", "uuid", "uri", "uri-reference", "iri"),
        *("iri-reference", "uri-template", "json-pointer", "relative-json-pointer", "regex"),
    }
)
# Formats as RFC 3339, 1123 and 5321 have them. llguidance's own patterns allow more: days that a
# month has not, seconds that a minute has not, labels whose Punycode has to be decoded, and names
# that are too long.
_LEAP_DAY = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29"
_DATE = (
    r"(?:\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_DAY})"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_LABEL = (  # of a host's name; it does not begin with xn--
    r"(?:[A-WYZa-wyz0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"|[Xx](?:[A-MO-Za-mo-z0-9](?:[A-Za-z0-9-]{0,60}[A-Za-z0-9])?)?)"
)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,16}"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_EXACT_FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "hostname": f"^{_HOST}$",
    "email": rf"^{_ATOM}(?:\.{_ATOM}){{0,2}}@{_HOST}$",
}
_ONE, _LIST, _BY_NAME = "one", "list", "by name"
# Where the schemas within a schema are.
_INNER: Mapping[str, str] = {
    **dict.fromkeys(("items", "additionalProperties", "additionalItems", "not", "if"), _ONE),
    **dict.fromkeys(("then", "else", "contains", "propertyNames"), _ONE),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), _ONE),
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), _LIST),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), _BY_NAME),
}

Path = tuple[str | int, ...]  # from the root of a schema


def of_schema(schema: Any) -> str:
    """Texts that are JSON of this schema, their keys in its order.

    Raises:
        GrammarRefused: the schema is too large, or it is not one that can be kept to.
    """
    from llguidance import LLMatcher

    _check_size(schema)
    _check_multiples(schema)
    found = None
    try:
        plain = {} if schema is True else _plain(schema, ())
        grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(plain), overrides=_OPTIONS)
        reason = LLMatcher.validate_grammar(grammar)
        if not reason:
            return grammar
        found = _fault(plain, plain, (), itertools.count())
    except ValueError as error:
        reason = str(error)
    raise GrammarRefused(reason, "" if found is None else _spelled(found))


def of_regex(pattern: str) -> str:
    """Texts that the pattern, in the syntax of Rust's `regex`, matches as a whole.

    Raises:
        GrammarRefused: it is none.
    """
    from llguidance import LLMatcher

    _check_length(pattern)
    return _checked(LLMatcher.grammar_from_regex(pattern))


def of_choice(choices: list[str]) -> str:
    """One of these texts.

    Raises:
        GrammarRefused: they are too long together.
    """
    from llguidance import LLMatcher

    _check_length("".join(choices))
    lines = " | ".join(json.dumps(choice) for choice in choices)
    return _checked(LLMatcher.grammar_from_lark(f"start: {lines}"))


def of_grammar(text: str) -> str:
    """Texts of a context-free grammar, in llguidance's Lark or llama.cpp's GBNF.

    Raises:
        GrammarRefused: it is none. (A control token that it names never follows.)
    """
    from llguidance import grammar_from

    _check_length(text)
    for directive in ("%llguidance", "%json", "%regex"):
        if directive in text:
            raise GrammarRefused(f"{directive} is not for clients")
    try:
        grammar = grammar_from("grammar", text)
    except (ValueError, RecursionError) as error:
        raise GrammarRefused(str(error)) from None
    return _checked(grammar)


def of_call(tools: Sequence[Tool], end: int) -> str:
    """What follows the tag that begins a call of one of the tools, with the closing tag `end`. The
    arguments are JSON of the tool's schema, which `notation` reads too.

    Raises:
        GrammarRefused: see `of_schema`; `where` begins with the tool's name.
    """
    openings = (json.dumps(f"call:{tool.name}") for tool in tools)
    calls = list(map(" ".join, zip(openings, _arguments(tools), strict=True)))
    return _one_of(calls, f" <[{end}]>")


def of_json_call(tools: Sequence[Tool], *, or_text: bool) -> str:
    """A call of one of the tools as a JSON object, as `prompted_tools` reads it; or else a text
    that does not begin like JSON.

    Raises:
        GrammarRefused: see `of_call`.
    """
    openings = (f'{{"name": {json.dumps(tool.name)}, "parameters": ' for tool in tools)
    calls = [
        f'{json.dumps(opening)} {arguments} "}}"'
        for opening, arguments in zip(openings, _arguments(tools), strict=True)
    ]
    return _one_of([*calls, *([r"/[^\s{\[`](.|\n)*/"] if or_text else [])])


def _arguments(tools: Sequence[Tool]) -> list[str]:
    """What each tool's arguments have to be, in Lark."""
    written = []
    for tool in tools:
        try:
            of_schema(tool.parameters)
        except GrammarRefused as error:
            raise GrammarRefused(error.reason, f"{tool.name}, {error.where or '#'}") from None
        schema = {**_plain(tool.parameters, ()), _OWN_OPTIONS: _OPTIONS}
        written.append(f"%json {json.dumps(schema)}")
    return written


def _one_of(rules: Sequence[str], end: str = "") -> str:
    from llguidance import LLMatcher

    names = " | ".join(f"rule_{index}" for index in range(len(rules)))
    lines = (f"rule_{index}: {rule}" for index, rule in enumerate(rules))
    return _checked(LLMatcher.grammar_from_lark("\n".join((f"start: ({names}){end}", *lines))))


def _checked(grammar: str) -> str:
    from llguidance import LLMatcher

    reason = LLMatcher.validate_grammar(grammar)
    if reason:
        raise GrammarRefused(reason)
    return grammar


def _check_length(text: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise GrammarRefused(f"it has {len(text):,} characters, and may have {_MOST_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarRefused("it has a lone surrogate: not valid Unicode") from None


def _check_size(schema: Any) -> None:
    if not isinstance(schema, dict | bool):
        raise GrammarRefused("it must be an object")
    level: list[Any] = [schema]
    for _ in range(2 * _DEEPEST):  # an object within "properties" is two levels
        level = [inner for each in level for inner in _values(each)]
        if not level:
            _check_length(json.dumps(schema, ensure_ascii=False))
            return
    raise GrammarRefused(f"it is nested too deeply, by more than {_DEEPEST} schemas")


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _plain(schema: Any, path: Path) -> Any:
    """The schema without what asks for nothing.

    Raises:
        GrammarRefused: a word that llguidance would ignore asks for something.
    """
    if not isinstance(schema, dict):
        return schema
    if schema.get("nullable") is True:
        where = _spelled((*path, "nullable"))
        raise GrammarRefused('it is no word of JSON Schema; say "type": [..., "null"]', where)
    plain = {
        word: value
        for word, value in schema.items()
        if word != _OWN_OPTIONS and not (word in _HARMLESS and value == _HARMLESS[word])
    }
    for word in ("const", "enum"):
        if _has_nul(plain.get(word)):  # llguidance leaves it out
            raise GrammarRefused("it has a NUL character", _spelled((*path, word)))
    name, others = plain.get("format"), plain.get("allOf", [])
    if isinstance(name, str) and name not in _FORMATS:
        del plain["format"]
    elif isinstance(name, str) and name in _EXACT_FORMATS and isinstance(others, list):
        del plain["format"]
        plain["allOf"] = [*others, {"pattern": _EXACT_FORMATS[name]}]
    made = {word: _plain(inner, (*path, *word)) for word, inner in _inner(plain)}
    for word, kind in _INNER.items():
        value = plain.get(word)
        if (word,) in made:
            plain[word] = made[word,]
        elif kind == _BY_NAME and isinstance(value, dict):
            plain[word] = {name: made[word, name] for name in value}
        elif kind != _BY_NAME and isinstance(value, list):
            plain[word] = [made[word, place] for place in range(len(value))]
    return plain


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    keys = value if isinstance(value, dict) else ()
    return any(map(_has_nul, (*keys, *_values(value))))


def _inner(schema: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The schemas within a schema, and where they are."""
    for word, kind in _INNER.items():
        value = schema.get(word)
        if kind == _BY_NAME and isinstance(value, dict):
            yield from (((word, name), inner) for name, inner in value.items())
        elif kind != _BY_NAME and isinstance(value, list):
            yield from (((word, place), inner) for place, inner in enumerate(value))
        elif kind == _ONE and isinstance(value, dict):
            yield (word,), value


def _fault(root: Any, schema: Any, path: Path, probes: "itertools.count[int]") -> Path | None:
    """The innermost schema that is refused by itself; None if this one is not."""
    from llguidance import LLMatcher

    if not isinstance(schema, dict) or next(probes) >= _MOST_PROBES:
        return None
    named = {name: root[name] for name in ("$defs", "definitions") if name in root}
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps({**named, **schema}))
    except ValueError:
        return path
    if not LLMatcher.validate_grammar(grammar):
        return None
    inner = (_fault(root, each, (*path, *word), probes) for word, each in _inner(schema))
    return next((found for found in inner if found is not None), path)


def _check_multiples(schema: Any) -> None:
    """Refuse numbers that have to be multiples of much."""
    product, level = 1, [schema]
    while level:
        for each in level:
            multiple = each.get("multipleOf") if isinstance(each, dict) else None
            if isinstance(multiple, int | float) and math.isfinite(multiple):
                product *= max(1, abs(Fraction(str(multiple)).numerator))
        level = [inner for each in level for inner in _values(each)]
    if product > _LARGEST_MULTIPLE:
        raise GrammarRefused(f"multipleOf: in all more than {_LARGEST_MULTIPLE:,}")


def _spelled(path: Path) -> str:
    """A JSON pointer (RFC 6901)."""
    return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
