"""`gemma-server models`: which models a running server has, and what is in memory."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
from rich.filesize import decimal

from gemma_server.cli.remote import Remote, with_server
from gemma_server.cli.report import format_table

_HEADER = ("model", "version", "state", "labels", "memory", "requests", "last used", "leaves")


def describe(document: dict[str, Any], now: datetime) -> str:
    """What GET /models answers with, as a table for a person."""
    rows = [row for model in document["models"] for row in _rows(model, now)]
    memory = document["memory"]
    limit = "" if memory["limit_bytes"] is None else f" of {decimal(memory['limit_bytes'])}"
    problems = [
        f"{model['name']} version {version['version']}: {version['error']}"
        for model in document["models"]
        for version in model["versions"]
        if version["error"]
    ]
    booked = f"memory: {decimal(memory['booked_bytes'])}{limit}"
    return "\n".join([format_table([_HEADER, *rows]).rstrip("\n"), booked, *problems])


def _rows(model: dict[str, Any], now: datetime) -> Iterator[tuple[str, ...]]:
    used, leaves = _since(model["used_at"], now), _until(model["expires_at"], now)
    if not model["versions"]:
        yield model["name"], "", "no version yet", "", "", "", "", ""
    for version in model["versions"]:
        available = version["state"] == "AVAILABLE"
        yield (
            model["name"],
            str(version["version"]),
            _state(version),
            ", ".join(version["labels"]),
            decimal(version["bytes"]) if version["bytes"] else "",
            str(version["requests"]) if available else "",
            used if available else "",
            leaves if available else "",
        )


def _state(version: dict[str, Any]) -> str:
    if version["state"] == "LOADING":
        share = "" if version["progress"] is None else f" {version['progress']:.0%}"
        return f"LOADING{share}"
    return "FAILED" if version["error"] else str(version["state"])


def _since(moment: str | None, now: datetime) -> str:
    return "" if moment is None else f"{_span(now - _read(moment))} ago"


def _until(moment: str | None, now: datetime) -> str:
    return "" if moment is None else f"in {_span(_read(moment) - now)}"


def _read(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


def _span(delta: Any) -> str:
    seconds = max(0, round(delta.total_seconds()))
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


@click.command("models")
@with_server
def command(server: Remote) -> None:
    """List the models of a running server, with their versions."""
    click.echo(describe(server.ask("GET", "/models"), datetime.now(UTC)))
