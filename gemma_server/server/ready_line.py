"""The one line on standard output that says where the server answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gemma_server.console import say
from gemma_server.server.hosted import Loaded
from gemma_server.settings import Settings


class Address(NamedTuple):
    """Where the server answers HTTP."""

    base_url: str
    curl: str  # the arguments with which curl reaches /prompt


def announce(settings: Settings, loaded: Loaded, address: Address, example: str | None) -> None:
    """Print the ready line on standard output. Standard error gets the path of the frames' socket,
    and a command to try with `example` as the body."""
    facts = f"{loaded.name}, {loaded.device}, {loaded.load_s:.1f} s"
    print(f"gemma-server ready: {address.base_url} ({facts})", flush=True)
    if settings.frames is not None:
        say(f"frames at unix:{settings.frames}")
    if example is not None:
        say(f"try it: curl {address.curl} --json '{example}'")


def address_of(settings: Settings, sockets: Sequence[Any]) -> Address:
    """The address that gunicorn's `sockets` are bound to. A worker that ends closes them."""
    if not settings.serves_tcp:
        curl = f"--unix-socket {settings.uds} http://localhost/prompt"
        return Address(f"unix:{settings.uds}", curl)
    port = sockets[0].getsockname()[1]  # --port 0 lets the system choose
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if settings.api_key_file else ""
    return Address(url, f"{url}/prompt{key}")
