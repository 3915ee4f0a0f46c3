"""Token ids on the real vocabulary: llama.cpp's, on a corpus made to be nasty; and text back."""

import base64
import http.client
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.settings import default_cache_dir
from gemma_server.text.detokenizer import TextStream
from gemma_server.text.family import GEMMA
from gemma_server.text.sentencepiece_model import model_from_pieces, without_last
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.text.tokenizer_json import model_from_json
from gemma_server.weights.demo import demo_checkpoint
from testing.counts import cases
from testing.real import Pieces
from tests.text.test_tokenizer_json import as_json

pytestmark = pytest.mark.real_model

Encode = Callable[[str, bool], list[int]]  # of a text; whether control tokens in it count as such
Family = Callable[[random.Random], Iterator[str]]

REPOSITORY = Path(__file__).parents[2]
TURNS = (GEMMA.start_of_turn, GEMMA.end_of_turn)
UNUSED = 5  # SentencePiece's type for a piece that no text becomes

# Where llama.cpp and Google's SentencePiece part, and we side with SentencePiece:
# - llama.cpp takes every vocabulary's </s> for an end-of-text token; Gemma's is an HTML tag. And
#   its converter types <mask> and <unused1> as control, which no text becomes.
RETYPED = re.compile("</s>|<mask>|<unused\\d+>")
# - It looks for the pieces of several spaces before it turns spaces into U+2581, so that a run
#   with a U+2581 of the text's own in it is one piece for SentencePiece alone.
OWN_SPACE_SIGN = re.compile("\u2581[ \u2581]| \u2581")


@pytest.fixture(scope="module")
def retyped(pieces: Pieces) -> Tokenizer:
    """Ours with the pieces out of reach that are so for llama.cpp."""
    texts, scores, types = pieces
    theirs = [
        UNUSED if RETYPED.fullmatch(text) else kind for text, kind in zip(texts, types, strict=True)
    ]
    return Tokenizer(model_from_pieces(texts, scores, theirs))


@pytest.fixture(scope="module")
def llama() -> Iterator[Encode]:
    """llama.cpp's tokenizer, which the wheel offers over HTTP alone."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(demo_checkpoint(default_cache_dir()))
    params.n_gpu_layers, params.n_parallel, params.n_ctx = 0, 1, 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    connection = http.client.HTTPConnection(urlsplit(server.listening_address).netloc, timeout=60)

    def encode(text: str, special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": special})
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        ids: list[int] = json.loads(connection.getresponse().read())["tokens"]
        return ids

    yield encode
    connection.close()


@pytest.fixture(scope="module")
def corpus(pieces: Pieces) -> list[str]:
    return corpus_of(pieces[0])


def corpus_of(vocabulary: list[str]) -> list[str]:
    """Every family, then splices of texts of any of them; turn markers have their own test."""
    texts = list(chain(*(draw(random.Random(0)) for draw in FAMILIES)))
    texts += _vocabulary(random.Random(0), vocabulary)
    rng = random.Random(1)
    for _ in range(1500):
        parts = (rng.choice(texts)[:40] for _ in range(rng.randint(2, 5)))
        texts.append(rng.choice(["", " ", "\n"]).join(parts))
    return list(dict.fromkeys(map(_without_markers, texts)))


def test_ids_are_llama_cpp_s(
    tokenizer: Tokenizer, retyped: Tokenizer, llama: Encode, corpus: list[str]
) -> None:
    assert len(corpus) > 6000
    plain = [text for text in corpus if not OWN_SPACE_SIGN.search(text)]
    ours = {text: (retyped if RETYPED.search(text) else tokenizer).encode(text) for text in plain}
    assert _wrong(ours, llama, special=False) == []


def test_where_ids_are_not_llama_cpp_s_the_text_is(
    tokenizer: Tokenizer, retyped: Tokenizer, llama: Encode, corpus: list[str]
) -> None:
    """The known differences are real, each and every one, and no text is lost in them."""
    odd = [
        text
        for text in corpus
        if OWN_SPACE_SIGN.search(text) or tokenizer.encode(text) != retyped.encode(text)
    ]
    assert len(odd) > 100
    for text in odd:
        theirs = llama(text, False)
        assert tokenizer.encode(text) != theirs
        assert tokenizer.decode(theirs) == text.replace("\u2581", " ")


def test_turn_markers_are_llama_cpp_s_control_tokens(
    tokenizer: Tokenizer, llama: Encode, corpus: list[str]
) -> None:
    rng = random.Random(2)
    # Here other control tokens would count as such with llama.cpp; with us they are text.
    texts = [
        text for text in corpus if not re.search("[<\\[]", text) and not OWN_SPACE_SIGN.search(text)
    ]
    chats = {}
    for _ in range(300):
        parts = (rng.choice(TURNS) + rng.choice(texts) for _ in range(rng.randint(1, 4)))
        chat = rng.choice(["", "\n", rng.choice(texts)]) + "".join(parts)
        chats[chat] = tokenizer.encode(chat)
    assert _wrong(chats, llama, special=True) == []


def _wrong(ours: dict[str, list[int]], llama: Encode, *, special: bool) -> list[str]:
    return [text for text, ids in ours.items() if ids != llama(text, special)]


def test_ids_are_those_of_a_tokenizer_json(
    pieces: Pieces, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    """The one that is made from the same pieces, as transformers' converter does."""
    texts, scores, types = pieces
    spelled = [text.replace(" ", "\u2581") for text in texts]
    found = json.dumps(as_json(spelled, scores, types)).encode()
    model, [left_out] = without_last(model_from_json(found), tokenizer.vocab_size)
    assert left_out == "<image_soft_token>"
    other = Tokenizer(model)
    assert [text for text in corpus if other.encode(text) != tokenizer.encode(text)] == []


# Encoding and back.


NASTY = [
    "", " ", "  two  spaces", "\n\n\n", "\t\ttabs", "naïve café", "数学と言語", "12345 67,890.12",
    "\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL}", "<table><tr>", "a\x00b", "\u200b\u202e", "e\u0301",
    "<0x41>", "def f(x):\n    return x  # ok", "<unused1> <mask> [multimodal]", "<eos> and <bos>",
    "\r\n", "x" * 500, "🎉" * 50,
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=repr)
def test_the_tokenizer_gives_every_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == 2
    assert tokenizer.decode(ids) == text


def test_the_tokenizer_knows_gemma_s_special_pieces(tokenizer: Tokenizer) -> None:
    encode = tokenizer.encode
    assert encode("<start_of_turn>user\nhi<end_of_turn>\n")[1:] == [105, 2364, 107, 2202, 106, 107]
    assert encode("  two")[1] == 138  # one user-defined piece for two spaces
    assert encode("a\n\n\nb")[2] == 109
    assert tokenizer.stop_ids == {1, 106}


def _texts() -> st.SearchStrategy[str]:
    """Any Unicode text, with what could be taken for a special token thrown in."""
    fragment = st.text(max_size=20) | st.sampled_from(LOOKALIKES + HTML + SPACES + EMOJI)
    text = st.lists(fragment, max_size=8).map("".join).map(_without_markers)
    return text.filter(lambda text: not any(marker in text for marker in TURNS))


@settings(max_examples=cases(150, 1000), deadline=None)
@given(data=st.data())
def test_every_text_comes_back(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(_texts())
    # U+2581 is SentencePiece's own sign for a space: the two cannot be told apart.
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


@settings(max_examples=cases(150, 1000), deadline=None)
@given(data=st.data())
def test_a_stream_gives_the_text_of_its_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also where an answer ends within a character, or is no text at all."""
    any_ids = st.lists(
        st.integers(0, tokenizer.vocab_size + 9) | st.integers(238, 493),  # the latter: bytes
        max_size=30,
    )
    ids = data.draw(_texts().map(tokenizer.encode) | any_ids)
    ids = ids[: data.draw(st.integers(0, len(ids)))]
    stream = TextStream(tokenizer.piece_bytes)
    assert "".join([*map(stream.push, ids), stream.close()]) == tokenizer.decode(ids)


# The corpus: families of texts, each drawn from a generator of its own.

SCRIPTS = """
    0020-007E 00A0-00FF 0100-024F 0370-03FF 0400-052F 0531-058F 05D0-05F4 0620-06FF 0700-074F
    0780-07BF 0900-097F 0980-09FF 0A00-0A7F 0A80-0AFF 0B00-0B7F 0B80-0BFF 0C00-0C7F 0C80-0CFF
    0D00-0D7F 0D80-0DFF 0E00-0E5F 0E80-0EFF 0F00-0FFF 1000-109F 10A0-10FF 1100-11FF 1200-137F
    13A0-13FF 1400-167F 1680-169F 16A0-16FF 1780-17FF 1800-18AF 1D00-1DBF 1E00-1FFF 2000-206F
    2070-209F 20A0-20CF 2100-214F 2150-218F 2190-22FF 2300-23FF 2400-245F 2500-259F 25A0-27BF
    2800-28FF 2C80-2CFF 2E80-2FDF 3000-30FF 3100-318F 3200-33FF 4DC0-4DFF 4E00-9FFF A000-A4CF
    A640-A69F AC00-D7A3 E000-E0FF F900-FAFF FB1D-FDFF FE00-FE6F FF00-FFEF 10000-100FF 10330-1034F
    10400-1044F 12000-123FF 13000-1342F 1D100-1D1FF 1D400-1D7FF 1F000-1F0FF 1F100-1F2FF
    1F300-1F5FF 1F600-1F64F 1F680-1F6FF 1F900-1F9FF 20000-2A6DF 2F800-2FA1F E0100-E01EF
"""
SPACES = [
    " ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680", "\u2003",
    "\u200b", "\u2028", "\u2029", "\u202f", "\u3000", "\ufeff", "\u2581",
]  # fmt: skip
EMOJI = [
    "👩\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "🏴\u200d☠\ufe0f", "👍🏽", "🧑🏿\u200d🚀",
    "🇩🇪🇫🇷", "🇺", "1\ufe0f\u20e3#\ufe0f\u20e3", "❤\ufe0f\u200d🔥", "☺\ufe0e☺\ufe0f",
    "🫱🏼\u200d🫲🏿", "🏻", "\u200d", "\ufe0f", "🏴\U000e0067\U000e0062\U000e007f",
]  # fmt: skip
LOOKALIKES = [
    "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused1>",
    "<unused98>", "<unused99>", "<unused6241>", "<unused99999>", "<start_of_image>",
    "<end_of_image>", "<image_soft_token>", "<0x0A>", "<0x00>", "<0xFF>", "<0xff>", "<0x41>",
    "</s>", "<s>", "<|endoftext|>", "<|im_start|>", "[INST]", "<start_of_turn", "start_of_turn>",
    "<start_of_turn >", "<START_OF_TURN>", "<Start_of_turn>", "<bos", "bos>", "<<bos>>", "< bos >",
    "<bos><bos>", "<2mass>", "[@BOS@]", "<unused", "<unused1", "unused1>",
]  # fmt: skip
HTML = [
    "<table>", "<caption>", "<thead>", "<tbody>", "<tfoot>", "<tr>", "<th>", "<td>", "</table>",
    "</td>", "<h1>", "</h6>", "<blockquote>", "<strong>", "<em>", "<b>", "<i>", "<u>", "<s>",
    "<sub>", "<sup>", "<code>", "</code>", "<ul>", "<li>", "<p>", "<br>", "<br/>", "<hr>", "<a>",
    "<div>", "<TABLE>", "<Table>", "< table>", "<table >", "<table><tr>", "<<table>>", "<tab le>",
    "<td><td></td>", "<header>", "<footer></footer>", '<table\nclass="x">', "<!-- x -->",
    "<!DOCTYPE html>", "&lt;td&gt;", "&nbsp;",
]  # fmt: skip
UNITS = ["a", "ab", "Ha", "-", "=", "0", "é", "中", "🎉", "\x00", "a\u0301", "<", "ाा", "."]
CODE = [
    "def f(x: int = 0) -> list[str]:\n    return [f'{x!r:>10}' for _ in range(x)]  # ok\n",
    '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", 0x1F\'ULL);\n\treturn 0;\n}\n',
    "package main\n\nfunc main() {\n\tfor i := range 10 {\n\t\tgo func() { ch <- i }()\n\t}\n}\n",
    'fn main() -> Result<(), Box<dyn Error>> {\n    println!("{:?}", &a[..]);\n    Ok(())\n}\n',
    "const f = async ({a, ...b}) => `${await a?.b ?? 1}`; // ===\n/** @type {never} */\n",
    "SELECT *, COUNT(DISTINCT a.x) FROM t AS a\n  LEFT JOIN u USING (id)\n WHERE b LIKE '%_';\n",
    "if [[ -z \"${x:-}\" ]]; then\n  echo 'a' | sed -E 's/(^|:)\\/+/\\1/g' >&2 2>/dev/null\nfi\n",
    "public static <T extends A & B> void m(T... t) throws E {\n        @A int[][] x = {{}};\n}\n",
    "main :: IO ()\nmain = mapM_ print $ zipWith (\\x y -> x <> y) [1..] . fmap (+ 1) =<< xs\n",
    "(defun fact (n) (if (<= n 1) 1 (* n (fact (- n 1))))) ; #'(lambda (x) `(,x ,@y))\n",
    "\\begin{align}\\label{a}\n  \\sum_{i=0}^{\\infty} \\frac{x^i}{i!} = e^x %\n\\end{align}\n",
    '{"a": [1, -2.5e-10, null, true], "\\u00e9": {"b": "\\"\\\\n"}}\n',
    "a:\n  - b: &x 'c'\n    <<: *x\n  - |\n    text\n\n    more\n---\n",
    "@@ -1,5 +1,7 @@\n-\told line\n+\tnew line  \n \n\\ No newline at end of file\n",
    "p{margin:0 auto!important;color:#FF00aa}@media(min-width:10.5em){a::before{content:'\\201C'}}",
    "mov eax, dword ptr [rbp-0x14]\n\tjne\t.L3\n.L3:\n\t.cfi_endproc\n",
    "<?php foreach ($a as $k => &$v) { echo <<<EOT\n  {$k['x']->y}\nEOT; } ?>\n",
    "<svg viewBox='0 0 1 1'><path d=\"M0,0l1.5-1e3z\"/></svg><script>a<b&&c>d</script>\n",
    "| a | b |\n|---|:-:|\n| `x` | **y** |\n\n> quote\n\n```py\nx\n```\n- [ ] todo\n",
    "       PROCEDURE DIVISION.\n           DISPLAY 'HELLO'.\n           STOP RUN.\n",
]


def _planes(rng: random.Random) -> Iterator[str]:
    for plane in range(17):
        for _ in range(16):
            yield _draw(rng, plane << 16, plane << 16 | 0xFFFF, rng.randint(1, 12))


def _scripts(rng: random.Random) -> Iterator[str]:
    for script in SCRIPTS.split() * 5:
        first, last = (int(end, 16) for end in script.split("-"))
        yield " ".join(_draw(rng, first, last, rng.randint(1, 9)) for _ in range(4))


def _draw(rng: random.Random, first: int, last: int, count: int) -> str:
    """Code points of a range, without surrogates."""
    drawn = (rng.randint(first, last) for _ in range(count))
    return "".join(chr(code) for code in drawn if not 0xD800 <= code <= 0xDFFF)


def _combining(rng: random.Random) -> Iterator[str]:
    marks = [chr(code) for code in range(0x300, 0x3100) if unicodedata.combining(chr(code))]
    for _ in range(120):
        bases = rng.choices("aeiouyñéüÅşđאبकก가が1. \n🎉", k=6)
        yield "".join(base + "".join(rng.choices(marks, k=rng.randint(0, 5))) for base in bases)
    for word in ["Ångström", "naïve", "한국어", "हिन्दी", "ﬁancée", "ǄǅΩ", "Việt", "đường", "㎏½"]:
        yield unicodedata.normalize("NFC", word)
        yield unicodedata.normalize("NFD", word)
        yield unicodedata.normalize("NFKD", word)


def _emoji(rng: random.Random) -> Iterator[str]:
    for _ in range(150):
        yield rng.choice(["", " "]).join(rng.choices(EMOJI, k=rng.randint(1, 5)))


def _controls(rng: random.Random) -> Iterator[str]:
    odd = [*range(0x20), *range(0x7F, 0xA1), 0xAD, 0x61C, *range(0x200B, 0x2010)]
    odd += [*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFDD0, 0xFEFF, 0xFFFC, 0xFFFD]
    odd += [0xFFFE, 0xFFFF, 0x1FFFE, 0xE0001, 0x10FFFF]
    for code in odd:
        yield from (chr(code), f"a{chr(code)}b", f" {chr(code) * 3}\n")
    for _ in range(150):
        words = rng.choices(["שלום", "مرحبا", "abc", "123", "()", "\x00"], k=4)
        yield "".join(chr(rng.choice(odd)) + word for word in words)


def _spaces(rng: random.Random) -> Iterator[str]:
    for space in SPACES:
        for count in range(1, 41):
            yield rng.choice(["{}", "a{}", "{}a", "a{}b", "1{}2", ".{}<"]).format(space * count)
    for _ in range(500):
        runs = (rng.choice(SPACES[:10]) * rng.randint(1, 6) for _ in range(rng.randint(2, 6)))
        yield rng.choice(["", "x", "\n"]).join(runs)


def _numbers(rng: random.Random) -> Iterator[str]:
    for length in range(1, 41):
        yield "".join(rng.choices("0123456789", k=length))
        yield "".join(rng.choices("0123456789.,:-+eE_ xX/%$€", k=length))
        yield "".join(rng.choices("٠١٢٣٤٥٦٧٨٩०१२३४५६७८९０１２３４５６７８９²³½Ⅷ①", k=length))


def _code(rng: random.Random) -> Iterator[str]:
    for text in CODE:
        yield from (text, text.replace("  ", "\t"), text.replace("\n", "\r\n"), text * 3)
        start = rng.randrange(len(text))
        yield text[start : start + 40] + rng.choice(CODE)[:30]


def _links(rng: random.Random) -> Iterator[str]:
    for length in range(1, 81):
        raw = rng.randbytes(length)
        path = "/".join(rng.choices(["a%20b", "~x", "index.html", "日本", "v1.2.3", ""], k=4))
        yield f"https://user:pw@example.org:8080/{path}?q={raw[:8].hex()}&r[]=#frag"
        yield base64.b64encode(raw).decode()
        yield "data:image/png;base64," + base64.urlsafe_b64encode(raw * 3).decode()
        yield raw.decode("latin-1")


def _long(rng: random.Random) -> Iterator[str]:
    for unit in UNITS:
        yield from (unit * count for count in (2, 3, 7, 16, 33, 100, 500))
    for length in (50, 200, 1000, 3000):
        yield "".join(rng.choices("etaoinshrdlu", k=length))
        yield "".join(rng.choices("ABCdef_-.", k=length))
        yield _draw(rng, 0x4E00, 0x9FFF, length)
        yield _draw(rng, 0xE00, 0xE5F, length)


def _lookalikes(rng: random.Random) -> Iterator[str]:
    for text in LOOKALIKES + HTML:
        yield from (text, f"a{text}b", f" {text} ", f"\n{text}\n\n", text * 3)
    for _ in range(250):
        yield rng.choice(["", " ", "x"]).join(rng.choices(LOOKALIKES + HTML, k=4))


def _documents(rng: random.Random) -> Iterator[str]:
    for folder in (".", "docs", "benchmarks", "clients/go"):
        for path in sorted((REPOSITORY / folder).glob("*.md")):
            text = path.read_text(encoding="utf-8")
            yield text
            yield from text.splitlines(keepends=True)


FAMILIES: list[Family] = [
    _planes, _scripts, _combining, _emoji, _controls, _spaces, _numbers, _code, _links, _long,
    _lookalikes, _documents,
]  # fmt: skip


def _vocabulary(rng: random.Random, vocabulary: list[str]) -> Iterator[str]:
    """Pieces in a row: every user-defined one, and texts on which many merges compete."""
    for piece in vocabulary[:6] + vocabulary[107:238] + vocabulary[255_968:256_010]:
        yield from (piece, f"a{piece}b", piece * 2)
    for _ in range(500):
        yield "".join(rng.choices(vocabulary, k=rng.randint(2, 8))).replace("\u2581", " ")


def _without_markers(text: str) -> str:
    for marker in TURNS:
        text = text.replace(marker, "")
    return text
