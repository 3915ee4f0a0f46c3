"""The chat template against the official ones, rendered once by scripts/goldens."""

import json
from typing import Any

import pytest

from gemma_server.engine.fake import fake_tokenizer
from gemma_server.errors import InvalidText
from gemma_server.text.chat import Message
from gemma_server.text.chat_template import GemmaTemplate
from testing.quality import GOLDENS

TOKENIZER = fake_tokenizer()
TEMPLATE = GemmaTemplate(TOKENIZER)
NAMES = {
    TOKENIZER.bos_id: "<bos>",
    TOKENIZER.start_of_turn_id: "<start_of_turn>",
    TOKENIZER.end_of_turn_id: "<end_of_turn>",
}
OF_TEXT = [
    golden
    for golden in json.loads((GOLDENS / "chat.json").read_text())
    if all(isinstance(message["content"], str) for message in golden["messages"])
]
CHATS = [golden for golden in OF_TEXT if golden["add_generation_prompt"]]
CLOSED = [
    golden
    for golden in OF_TEXT
    if not golden["add_generation_prompt"] and golden["messages"][-1]["role"] == "assistant"
]


def _ids(*turns: tuple[Any, str]) -> list[int]:
    return TEMPLATE.encode([Message(role, content) for role, content in turns])


def _shown(ids: list[int]) -> str:
    """The ids as text, control tokens by name."""
    text = b"".join(
        NAMES[token].encode() if token in NAMES else TOKENIZER.piece_bytes(token) for token in ids
    )
    return text.decode()


@pytest.mark.parametrize("golden", CHATS, ids=lambda golden: f"{golden['family']}")
def test_messages_are_rendered_as_the_official_template_does(golden: dict[str, Any]) -> None:
    messages = [Message(message["role"], message["content"]) for message in golden["messages"]]
    ids = TEMPLATE.encode(messages)
    assert _shown(ids) == golden["text"]
    # Each turn has one start and one end, whatever the words in it look like.
    assert ids.count(TOKENIZER.bos_id) == 1
    assert ids.count(TOKENIZER.end_of_turn_id) == len([m for m in messages if m.role != "system"])
    assert ids.count(TOKENIZER.start_of_turn_id) == ids.count(TOKENIZER.end_of_turn_id) + 1


@pytest.mark.parametrize("golden", CLOSED, ids=lambda golden: f"{golden['family']}")
def test_an_open_turn_is_the_template_s_without_its_end(golden: dict[str, Any]) -> None:
    messages = [Message(message["role"], message["content"]) for message in golden["messages"]]
    shown = _shown(TEMPLATE.encode(messages, goes_on=True))
    assert shown + "<end_of_turn>\n" == golden["text"]


def test_there_are_goldens_of_every_family() -> None:
    assert {golden["family"] for golden in CHATS} == {"gemma1", "gemma2", "gemma3"}
    assert len(CHATS) > 40
    assert {golden["family"] for golden in CLOSED} == {"gemma1", "gemma2", "gemma3"}


def test_what_no_official_template_takes_is_folded_not_refused() -> None:
    """Clients send systems in the middle, two users in a row, and nobody but the system."""
    two = _ids(("user", "a"), ("user", "b"))
    assert _shown(two) == "<bos><start_of_turn>user\na\n\nb<end_of_turn>\n<start_of_turn>model\n"
    late = _ids(("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d"))
    assert "<start_of_turn>user\nc\n\nd<end_of_turn>" in _shown(late)
    begun = TEMPLATE.encode([Message("system", "s"), Message("assistant", "b")], goes_on=True)
    assert begun == TEMPLATE.encode([Message("user", "s"), Message("assistant", "b")], goes_on=True)
    alone = _ids(("system", " s "))
    assert _shown(alone) == "<bos><start_of_turn>user\ns<end_of_turn>\n<start_of_turn>model\n"
    last = _ids(("user", "a"), ("system", "s"))
    assert "<start_of_turn>user\na\n\ns<end_of_turn>" in _shown(last)
    assert _shown(_ids()) == "<bos><start_of_turn>model\n"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidText, match="surrogate"):
        _ids(("user", "a\udc00"))
