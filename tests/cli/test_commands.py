"""The command line, in this process: help texts, generate, and usage errors."""

import pytest
from click.testing import CliRunner, Result

from gemma_server import __version__
from gemma_server.cli.main import main
from gemma_server.settings import Settings, flag_name, variable_name

SETTINGS = list(Settings.model_fields)


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(variable_name(setting), raising=False)


def _invoke(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "400"}).invoke(main, args, terminal_width=400)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(flag: str) -> None:
    result = _invoke(flag)
    assert result.exit_code == 0
    assert "serve" in result.stdout
    assert "generate" in result.stdout
    assert "bench" in result.stdout


def test_version_is_the_packages() -> None:
    assert _invoke("--version").stdout == f"gemma-server, version {__version__}\n"


@pytest.mark.parametrize("setting", SETTINGS)
def test_serve_help_lists_every_setting_with_its_variable(setting: str) -> None:
    result = _invoke("serve", "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f" {flag_name(setting)} " in text
    assert f"[env {variable_name(setting)}]" in text


@pytest.mark.parametrize("setting", SETTINGS)
def test_serve_help_tells_every_default(setting: str) -> None:
    default = Settings.model_fields[setting].default
    if isinstance(default, int | str) and default is not False:
        assert f"(default {default})" in _invoke("serve", "--help").stdout


def test_generate_help_lists_its_settings_with_their_variables() -> None:
    text = _invoke("generate", "--help").stdout
    for setting in ("model_checkpoint", "model_tokenizer", "dtype", "context_length", "cache_dir"):
        assert f"[env {variable_name(setting)}]" in text
    for flag in ("--steps", "--temperature", "--top-k", "--top-p", "--min-p", "--seed"):
        assert flag in text
    assert "--port" not in text


def test_generate_prints_the_text_and_nothing_else() -> None:
    result = _invoke("generate", "--fake", "héllo wörld")
    assert (result.exit_code, result.stdout) == (0, "héllo wörld\n")


def test_generate_stops_after_steps() -> None:
    assert _invoke("generate", "--fake", "--steps", "3", "hello").stdout == "hel\n"


def test_generate_passes_sampling_options_on() -> None:
    args = ("generate", "--fake", "--temperature", "1", "--seed", "1", "hello")
    assert _invoke(*args).stdout == "HELLO\n"


def test_generate_takes_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_FAKE", "1")
    monkeypatch.setenv("GEMMA_CONTEXT_LENGTH", "16")
    assert _invoke("generate", "0123456789").stdout == "01234\n"
    assert _invoke("generate", "--context-length", "18", "0123456789").stdout == "0123456\n"


def test_generate_with_a_prompt_that_does_not_fit_says_both_numbers() -> None:
    result = _invoke("generate", "--fake", "--context-length", "16", "x" * 20)
    assert result.exit_code == 1
    assert "21" in result.stderr
    assert "15" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "args",
    [
        ("--steps", "0"),
        ("--steps", "-1"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-k", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "-0.5"),
        ("--seed", "-1"),
        ("--seed", str(2**64)),
        ("--steps", "ten"),
    ],
)
def test_generate_refuses_options_that_the_server_would_refuse(args: tuple[str, str]) -> None:
    result = _invoke("generate", "--fake", *args, "hello")
    assert result.exit_code == 2
    assert args[0] in result.stderr


@pytest.mark.parametrize("command", [("serve",), ("generate", "hello")])
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--dtype", "int4"), "--dtype"),
        (("--context-length", "few"), "--context-length"),
        (("--nope",), "--nope"),
    ],
)
def test_usage_errors_end_with_2_and_name_the_flag(
    command: tuple[str, ...], args: tuple[str, ...], word: str
) -> None:
    result = _invoke(command[0], "--fake", *args, *command[1:])
    assert result.exit_code == 2
    assert word in result.stderr
    assert result.stdout == ""


def test_a_bad_variable_ends_with_2_and_names_variable_and_flag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEMMA_DTYPE", "int4")
    result = _invoke("generate", "--fake", "hello")
    assert result.exit_code == 2
    assert "--dtype (GEMMA_DTYPE)" in result.stderr


def test_a_model_that_is_not_there_ends_with_3() -> None:
    result = _invoke("generate", "--model-checkpoint", "/no/such/model.gguf", "hello")
    assert result.exit_code == 3
    assert "/no/such/model.gguf" in result.stderr
    assert result.stdout == ""
