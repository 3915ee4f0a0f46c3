"""The JSON-Schema test suite, draft 2020-12, from the sources of `jsonschema` on PyPI: `--long`."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from gemma_server.engine.fake import fake_tokenizer
from gemma_server.engine.request import SamplingParams
from gemma_server.errors import ConstraintFailed, GrammarRefused
from gemma_server.text import grammar
from gemma_server.text.constraint import Grammars, Matcher
from testing.counts import is_long
from testing.real import RealModel
from tests.real.test_structured import read, submit

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not is_long(), reason="the suite is fetched from PyPI: --long"),
]

SOURCES = "jsonschema==4.26.0"
GRAMMARS = Grammars(fake_tokenizer())


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Those schemas of the suite, with their tests, that are not refused."""
    target = tmp_path_factory.mktemp("suite")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(target)]
    subprocess.run([*command, "--no-binary", "jsonschema", SOURCES], check=True)
    [archive] = target.glob("*.tar.gz")
    found: list[dict[str, Any]] = []
    with tarfile.open(archive) as files:
        for member in files:
            path = Path(member.name)
            if path.match("tests/draft2020-12/*.json"):
                file = files.extractfile(member)
                assert file is not None
                found += json.load(file)
    kept = [group for group in found if is_kept_to(group["schema"])]
    assert len(found) > 350
    assert len(kept) > 150
    return kept


def is_kept_to(schema: Any) -> bool:
    try:
        GRAMMARS.start(grammar.of_schema(schema))
    except GrammarRefused:
        return False
    return True


def accepts(matcher: Matcher, text: str) -> bool:
    """Whether the whole text may be an answer."""
    try:
        for token in fake_tokenizer().encode_literal(text):
            if matcher.is_complete or not may(matcher, token):
                return False
            matcher.take(token)
    except ConstraintFailed:
        return False
    return matcher.is_complete or any(may(matcher, end) for end in fake_tokenizer().stop_ids)


def may(matcher: Matcher, token: int) -> bool:
    return bool(matcher.mask[token // 8] >> token % 8 & 1)


def test_nothing_invalid_is_an_answer(groups: list[dict[str, Any]]) -> None:
    """What is valid may be refused, for its spelling or the order of its keys, but seldom."""
    refused = 0
    for group in groups:
        compiled = grammar.of_schema(group["schema"])
        for case in group["tests"]:
            text = json.dumps(case["data"], ensure_ascii=False)
            accepted = accepts(GRAMMARS.start(compiled), text)
            assert case["valid"] or not accepted, (group["description"], text)
            refused += case["valid"] and not accepted
    assert refused < 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_s_answers_are_valid(
    real: RealModel, groups: list[dict[str, Any]], temperature: float
) -> None:
    ended = 0
    for first in range(0, len(groups), 8):
        some, how = groups[first : first + 8], SamplingParams(temperature, seed=first)
        handles = [submit(real, "Some JSON: ", group["schema"], how) for group in some]
        for group, handle in zip(some, handles, strict=True):
            text, reason = read(real, handle)
            if reason == "stop":
                ended += 1
                assert jsonschema_rs.is_valid(group["schema"], json.loads(text)), text
    assert ended > 20
