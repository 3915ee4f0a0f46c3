"""Flag over environment over default, and refusals that name the setting."""

from pathlib import Path

import pytest

from gemma_server.errors import UsageError
from gemma_server.settings import Settings, is_loopback, load_settings


def test_a_flag_beats_the_environment_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().slots == 8
    monkeypatch.setenv("GEMMA_SLOTS", "3")
    assert load_settings().slots == 3
    assert load_settings(slots="5").slots == 5


def test_the_model_keeps_the_names_that_people_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_CHECKPOINT", "/models/2b")
    monkeypatch.setenv("MODEL_TOKENIZER", "/models/tokenizer.model")
    settings = load_settings()
    assert settings.model_checkpoint == Path("/models/2b")
    assert settings.model_tokenizer == Path("/models/tokenizer.model")
    assert load_settings(model_checkpoint="/other").model_checkpoint == Path("/other")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"slots": "0"}, ["--slots", "GEMMA_SLOTS", "1"]),
        ({"port": "70000"}, ["--port", "65535"]),
        ({"context_length": "ten"}, ["--context-length", "integer"]),
        ({"dtype": "float16"}, ["--dtype", "bfloat16"]),
        ({"draft_checkpoint": "x", "max_draft": "0"}, ["--draft-checkpoint", "--max-draft"]),
        ({"host": "0.0.0.0"}, ["0.0.0.0", "--api-key-file"]),
        ({"key_tokens_per_minute": "9"}, ["--key-tokens-per-minute", "--api-key-file"]),
        ({"key_requests_per_minute": "9"}, ["--key-requests-per-minute", "--api-key-file"]),
        ({"degrade_at": "0"}, ["--degrade-at", "greater than 0"]),
        ({"degrade_at": "1.5"}, ["--degrade-at", "1"]),
        ({"degrade_to": "0"}, ["--degrade-to", "1"]),
        ({"tokens_per_minute": "-1"}, ["--tokens-per-minute", "0"]),
    ],
    ids=str,
)
def test_a_value_that_cannot_work_is_refused_by_name(
    flags: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        load_settings(**flags)
    for word in words:
        assert word in str(error.value)


def test_an_open_bind_is_allowed_with_keys_and_the_keys_are_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\n  two  \n")
    settings = load_settings(host="0.0.0.0", api_key_file=str(keys))
    assert settings.api_keys() == ("one", "two")
    keys.write_text("\n")
    with pytest.raises(UsageError, match="no key"):
        settings.api_keys()
    with pytest.raises(UsageError, match="No such file"):
        load_settings(api_key_file=str(tmp_path / "none")).api_keys()


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("app.localhost", True), ("0.0.0.0", False), ("::", False),
        ("192.168.1.4", False), ("example.com", False), ("127.0.0.1.example.com", False),
        ("", False), ("LocalHost", True),
    ],
)  # fmt: skip
def test_what_counts_as_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_every_setting_is_documented() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert f"`--{name.replace('_', '-')}`" in docs
        assert field.description
        assert field.description in docs.replace("\n", " "), f"{name}: the help text differs"
