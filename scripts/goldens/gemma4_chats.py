"""Gemma 4's chat templates: conversations with tools and thoughts, and what they make of them."""

import argparse
import hashlib
import random
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from scripts.goldens.files import GOLDENS, Record, write_lines

_CHATS = {"large": range(64), "small": range(12)}  # the templates differ in a line
_WORDS = ("red", "the sky", "", " 42 ", "naïve 数学 🎉", "a\nb\n\n", '{"k": [1]}', "x: y, {z}")
_NAMES = ("look", "Find_it", "add-2", "a.b")
_KEYS = ("b", "A", "c_1", "Zed", "type", "k k")


def make_gemma4_chats(arguments: argparse.Namespace) -> Record:
    """gemma4_chats.json: conversations, and the text that the official templates make of them."""
    paths = {"large": arguments.gemma4_template, "small": arguments.gemma4_small_template}
    if None in paths.values():
        raise SystemExit("gemma4-chats needs --gemma4-template and --gemma4-small-template")
    templates = {size: path.read_text() for size, path in paths.items()}
    goldens = [
        {"size": size, **chat, "text": _rendered(templates[size], chat)}
        for size, numbers in _CHATS.items()
        for chat in map(_chat, map(random.Random, numbers))
    ]
    write_lines(GOLDENS / "gemma4_chats.json", goldens)
    digests = {size: hashlib.sha256(text.encode()).hexdigest() for size, text in templates.items()}
    return {"templates_sha256": digests, "chats": len(goldens)}


def _chat(rng: random.Random) -> Record:
    """One conversation in OpenAI's form, with the arguments of calls as objects."""
    tools = [_tool(rng, name) for name in rng.sample(_NAMES, rng.randrange(1, 4))]
    with_tools = rng.random() < 0.7
    messages: list[Record] = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(_WORDS)})
    for _ in range(rng.randrange(1, 4)):
        messages.append({"role": "user", "content": rng.choice(_WORDS)})
        if with_tools and rng.random() < 0.7:
            for _ in range(rng.randrange(1, 3)):
                messages += _calls(rng)
        if rng.random() < 0.6:
            messages.append(_answer(rng))
    return {
        "messages": messages,
        "tools": tools if with_tools else [],
        "thinks": rng.random() < 0.5,
    }


def _answer(rng: random.Random) -> Record:
    message: Record = {"role": "assistant", "content": rng.choice(_WORDS)}
    if rng.random() < 0.4:
        message["reasoning_content"] = rng.choice(("Hm.", "One:\n two."))
    return message


def _calls(rng: random.Random) -> list[Record]:
    """The model's calls, and the responses of the tools, which may not be there yet."""
    names = [rng.choice(_NAMES) for _ in range(rng.randrange(1, 4))]
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": _arguments(rng, 0)},
        }
        for number, name in enumerate(names)
    ]
    responses = [
        {"role": "tool", "tool_call_id": call["id"], "content": rng.choice(_WORDS)}
        for call in calls
    ]
    content = {"content": rng.choice(_WORDS) if rng.random() < 0.3 else ""}
    answered = responses if rng.random() < 0.85 else []
    return [{**_answer(rng), **content, "tool_calls": calls}, *answered]


def _arguments(rng: random.Random, depth: int) -> Record:
    keys = rng.sample(_KEYS, rng.randrange(0, 4))
    return {key: _value(rng, depth) for key in keys}


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth < 2 else 6)
    if kind == 6:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 7:
        return _arguments(rng, depth + 1)
    return (rng.choice(_WORDS), 3, -2.5, True, False, None)[kind]


def _tool(rng: random.Random, name: str) -> Record:
    parameters: Record = {"type": "object", "properties": _properties(rng, 0)}
    if required := list(parameters["properties"])[:1]:
        parameters["required"] = required
    function = {"name": name, "description": rng.choice(_WORDS), "parameters": parameters}
    return {"type": "function", "function": function}


def _properties(rng: random.Random, depth: int) -> Record:
    keys = rng.sample(_KEYS, rng.randrange(0, 4))
    return {key: _schema(rng, depth) for key in keys if key != "type" or depth == 0}


def _schema(rng: random.Random, depth: int) -> Record:
    kinds = ["string", "number", "boolean", "array", ["string", "null"], "object"]
    kind = rng.choice(kinds[: 6 if depth < 2 else 5])
    schema: Record = {"type": kind}
    if rng.random() < 0.5:
        schema["description"] = rng.choice(_WORDS)
    if rng.random() < 0.2:
        schema["nullable"] = True
    if kind == "string" and rng.random() < 0.5:
        schema["enum"] = ["a", "b b"]
    if kind == "array" and rng.random() < 0.8:
        schema["items"] = _schema(rng, depth + 1)
    if kind == "object":
        schema["properties"] = _properties(rng, depth + 1)
        schema["required"] = list(schema["properties"])[:2]
    return schema


def _rendered(template: str, chat: Record) -> str:
    [text], _ = render_jinja_template(
        [chat["messages"]],
        tools=chat["tools"] or None,
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=chat["thinks"],
        bos_token="<bos>",
    )
    return str(text)
