"""A checkpoint's own chat template: the text is jinja2's, and control tokens are the template's."""

import re
from collections.abc import Sequence

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.engine.fake import fake_pieces
from gemma_server.errors import ChatRefused, InvalidText, ModelLoadError
from gemma_server.text.chat import Message, Role
from gemma_server.text.chat_template import GemmaTemplate
from gemma_server.text.jinja_template import JinjaTemplate, is_gemma_s
from gemma_server.text.sentencepiece_model import PieceType, model_from_pieces
from gemma_server.text.tokenizer import Tokenizer
from testing.counts import cases

MARKERS = ["<|im_start|>", "<|im_end|>"]
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
# In the way of Gemma's own: a system message opens the first turn, and others have to alternate.
GEMMA = """\
{{ bos_token }}
{%- if messages[0].role == 'system' -%}
    {%- set opening = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 is even) -%}
        {{ raise_exception('user and assistant have to alternate') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if turn.role == 'assistant' else 'user') + '\\n' }}
    {{- opening if loop.first }}{{ turn.content | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\\n' if add_generation_prompt }}"""
NO_SYSTEM = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + GEMMA
# Of templates in use: a namespace, a loop that ends early, JSON, a date, a block to train on.
MANY = """\
{%- set found = namespace(count=0) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' %}{% continue %}{% endif -%}
    {%- set found.count = found.count + 1 -%}
    {%- generation -%}[{{ found.count }}: {{ message | tojson }}]{%- endgeneration -%}
    {%- if found.count == 2 %}{% break %}{% endif -%}
{%- endfor -%}
{{ strftime_now('%Y')[:2] }}<|im_end|>"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    pieces, scores, types = fake_pieces()
    added = [*types, *[int(PieceType.CONTROL)] * len(MARKERS)]
    return Tokenizer(model_from_pieces([*pieces, *MARKERS], [*scores, 0.0, 0.0], added))


def chat(*turns: tuple[Role, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


CHATS = [
    chat(("user", "Hello")),
    chat(("system", "Be brief."), ("user", " Hello \n")),
    chat(("user", "a"), ("assistant", "b"), ("user", "ü🎉")),
]


def shown(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The ids as text, control tokens as the vocabulary spells them."""
    names = {index: piece for piece, index in tokenizer.special_pieces().items()}
    parts = [names[i].encode() if i in names else tokenizer.piece_bytes(i) for i in ids]
    return b"".join(parts).decode()


def rendered(source: str, messages: list[Message], *, opened: bool = True) -> str:
    """By jinja2 alone, set up as transformers does it."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    return environment.from_string(source).render(
        messages=[{"role": message.role, "content": message.content} for message in messages],
        add_generation_prompt=opened,
        bos_token="<bos>",
    )


@pytest.mark.parametrize("source", [CHATML, GEMMA])
@pytest.mark.parametrize("messages", CHATS)
def test_the_text_is_jinja_s(tokenizer: Tokenizer, source: str, messages: list[Message]) -> None:
    ids = JinjaTemplate(source, tokenizer).encode(messages)
    expected = rendered(source, messages)
    assert shown(tokenizer, ids) == "<bos>" + expected.removeprefix("<bos>")


def test_markers_are_one_token_each(tokenizer: Tokenizer) -> None:
    ids = JinjaTemplate(CHATML, tokenizer).encode(CHATS[2])
    special = tokenizer.special_pieces()
    assert [ids.count(special[marker]) for marker in MARKERS] == [4, 3]
    assert ids.count(tokenizer.bos_id) == 1


@settings(max_examples=cases(50, 500))
@given(st.lists(st.sampled_from([*MARKERS, "<bos>", "<eos>", "<", "|", "im_end", "a", " "])))
def test_a_marker_in_a_message_stays_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    template, content = JinjaTemplate(CHATML, tokenizer), "".join(parts)
    ids = template.encode(chat(("user", content)))
    plain = template.encode(chat(("user", "")))
    special = set(tokenizer.special_pieces().values())
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert shown(tokenizer, ids) == shown(tokenizer, plain).replace("user\n", "user\n" + content)


def test_an_open_turn_ends_with_the_message(tokenizer: Tokenizer) -> None:
    messages = chat(("user", "Count: two, three"), ("assistant", " two, <|im_end|>three "))
    ids = JinjaTemplate(CHATML, tokenizer).encode(messages, goes_on=True)
    whole = rendered(CHATML, messages, opened=False)
    assert shown(tokenizer, ids) == "<bos>" + whole.rpartition(" <|im_end|>")[0]


def test_what_stands_after_an_answer(tokenizer: Tokenizer) -> None:
    ids = JinjaTemplate(CHATML, tokenizer).ids_after_answer()
    assert shown(tokenizer, ids) == "<|im_end|>\n"
    own = JinjaTemplate(GEMMA, tokenizer).ids_after_answer()
    assert own == GemmaTemplate(tokenizer).ids_after_answer()


def test_what_templates_use_is_there(tokenizer: Tokenizer) -> None:
    messages = chat(("system", "x"), ("user", "<é>'"), ("assistant", "b"), ("user", "c"))
    ids = JinjaTemplate(MANY, tokenizer).encode(messages)
    assert shown(tokenizer, ids) == (
        '<bos>[1: {"role": "user", "content": "<é>\'"}]'
        '[2: {"role": "assistant", "content": "b"}]20<|im_end|>'
    )


def test_gemma_s_own_is_recognised(tokenizer: Tokenizer) -> None:
    gemma = GemmaTemplate(tokenizer)
    assert is_gemma_s(JinjaTemplate(GEMMA, tokenizer), gemma)
    assert is_gemma_s(JinjaTemplate(NO_SYSTEM, tokenizer), gemma)
    for other in (
        CHATML,
        MANY,
        GEMMA.replace("model", "assistant"),
        GEMMA.replace(" | trim", ""),
        GEMMA.replace("+ '\\n\\n'", "+ '\\n'"),
        "{{ raise_exception('never') }}",
    ):
        assert not is_gemma_s(JinjaTemplate(other, tokenizer), gemma), other


def test_a_template_that_is_none_is_refused_with_its_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelLoadError, match="line 2"):
        JinjaTemplate("one\n{% if %}", tokenizer)
    with pytest.raises(ModelLoadError, match="characters"):
        JinjaTemplate("x" * (1 << 21), tokenizer)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("\n{{ raise_exception('roles must alternate') }}", "line 2: .*roles must alternate"),
        ("\n\n{{ messages[7].content.x }}", "line 3: UndefinedError"),
        ("{{ 1 / 0 }}", "line 1: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "line 1: SecurityError"),
        ("{{ messages.append(1) }}", "line 1: SecurityError"),
        ("{% for i in range(100001) %}{% endfor %}", "line 1: OverflowError"),
        ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_refuses_the_prompt_with_its_line(
    tokenizer: Tokenizer, source: str, words: str
) -> None:
    template = JinjaTemplate(source, tokenizer)
    with pytest.raises(ChatRefused) as refused:
        template.encode(CHATS[0])
    assert re.search(words, refused.value.message)


def test_a_turn_that_the_template_leaves_out_cannot_go_on(tokenizer: Tokenizer) -> None:
    with pytest.raises(ChatRefused, match="leaves out"):
        JinjaTemplate("nothing", tokenizer).encode(chat(("assistant", "x")), goes_on=True)


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidText):
        JinjaTemplate(CHATML, tokenizer).encode(chat(("user", "a\udc00")))


@pytest.mark.parametrize("content", ["", " ", "end", "<|im_end|>", "assistant", "a \n"])
def test_any_message_may_go_on(tokenizer: Tokenizer, content: str) -> None:
    messages = chat(("user", "end"), ("assistant", content))
    ids = JinjaTemplate(CHATML, tokenizer).encode(messages, goes_on=True)
    begun = "<bos><|im_start|>user\nend<|im_end|>\n<|im_start|>assistant\n"
    assert shown(tokenizer, ids) == begun + content.rstrip()


def test_a_marker_that_the_template_puts_together_is_no_message_s(tokenizer: Tokenizer) -> None:
    """As `'<|' + role + '|>'`: the source has no such marker."""
    source = CHATML.replace("'<|im_start|>'", "'<|im_' + 'start|>'")
    ids = JinjaTemplate(source, tokenizer).encode(chat(("user", "<|im_start|>system")))
    special = tokenizer.special_pieces()
    assert ids.count(special["<|im_start|>"]) == 2


@pytest.mark.parametrize("before", ["", "\n\n", "x{{ bos_token }}"])
def test_the_text_begins_with_bos_once(tokenizer: Tokenizer, before: str) -> None:
    source = before + "{{ bos_token }}{{ messages[0].content }}"
    ids = JinjaTemplate(source, tokenizer).encode(chat(("user", "<bos>a")))
    assert ids[0] == tokenizer.bos_id
    assert ids.count(tokenizer.bos_id) == 1


def test_loops_that_python_cannot_nest_are_refused(tokenizer: Tokenizer) -> None:
    nested = "{% for a in messages %}" * 30 + "{% endfor %}" * 30
    with pytest.raises(ModelLoadError, match="chat template"):
        JinjaTemplate(nested, tokenizer)
