"""`gemma-server generate`."""

from typing import TYPE_CHECKING, Any

import click

from gemma_server.cli import exits
from gemma_server.cli.loading import load
from gemma_server.cli.options import NOT_WITHOUT_SERVER, Number, read_settings, settings_options
from gemma_server.errors import GemmaServerError

if TYPE_CHECKING:
    from gemma_server.serving.model import GenerativeModel


@click.command("generate")
@click.argument("prompt")
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="most tokens to generate",
)
@click.option(
    "--temperature", type=Number(0, 100), default=0.0, show_default=True, help="0 is greedy"
)
@click.option(
    "--top-k",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    help="sample among so many tokens; 0 is off",
)
@click.option(
    "--top-p",
    type=Number(0, 1, min_open=True),
    default=1.0,
    help="sample within this much probability; 1 is off",
)
@click.option(
    "--min-p",
    type=Number(0, 1),
    default=0.0,
    help="drop tokens below this share of the best; 0 is off",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=None,
    help="the same seed gives the same text",
)
@click.option("--chat", is_flag=True, help="ask an instruction-tuned model, in its own template")
@click.option("--system", default=None, help="what the model shall be told first; implies --chat")
@settings_options(without=NOT_WITHOUT_SERVER)
def command(
    prompt: str,
    steps: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    chat: bool,
    system: str | None,
    **flags: Any,
) -> None:
    """Load the model, continue PROMPT or answer it (--chat) on standard output, and end."""
    # As many slots as the server has, so that the kept programs fit both.
    settings = read_settings(flags)
    from gemma_server.api.generation import Generation
    from gemma_server.engine.request import Request, SamplingParams, random_seed

    sampling = SamplingParams(
        temperature, top_k, top_p, min_p, random_seed() if seed is None else seed
    )
    loaded = load(settings)
    try:
        ids = _encode(loaded, prompt, chat, system)
        request = Request(ids, steps, sampling, loaded.tokenizer.stop_ids)
        [handle] = loaded.engine.submit([request])
        generation = Generation(loaded.engine, loaded.tokenizer, handle)
        for piece in generation.pieces():
            click.echo(piece.text, nl=False)
    except GemmaServerError as error:
        exits.fail(str(error), exits.FAILED)
    click.echo()
    loaded.engine.stop()


def _encode(
    loaded: "GenerativeModel", prompt: str, chat: bool, system: str | None
) -> tuple[int, ...]:
    from gemma_server.text.chat import Message

    if not chat and system is None:
        return tuple(loaded.tokenizer.encode(prompt))
    told = [] if system is None else [Message("system", system)]
    return tuple(loaded.chat.encode([*told, Message("user", prompt)]))
