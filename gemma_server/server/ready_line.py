"""The one line on standard output that says where the server answers."""

from collections.abc import Sequence
from typing import Any

from gemma_server.console import say
from gemma_server.server.hosted import Loaded
from gemma_server.settings import Settings


def announce(
    settings: Settings, loaded: Loaded, sockets: Sequence[Any], example: str | None
) -> None:
    """Print the ready line on standard output. Standard error gets the path of the frames' socket,
    and a command to try with `example` as the body."""
    facts = f"{loaded.name}, {loaded.device}, {loaded.load_s:.1f} s"
    where, curl = _address(settings, sockets)
    print(f"gemma-server ready: {where} ({facts})", flush=True)
    if settings.frames is not None:
        say(f"frames at unix:{settings.frames}")
    if example is not None:
        say(f"try it: curl {curl} --json '{example}'")


def _address(settings: Settings, sockets: Sequence[Any]) -> tuple[str, str]:
    """The base URL, and what curl needs to reach /prompt there."""
    if not settings.serves_tcp:
        return f"unix:{settings.uds}", f"--unix-socket {settings.uds} http://localhost/prompt"
    port = sockets[0].getsockname()[1]  # --port 0 lets the system choose
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if settings.api_key_file else ""
    return url, f"{url}/prompt{key}"
