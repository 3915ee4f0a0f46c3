"""The sidecar's own routes: /prompt generates, /echo measures the hop."""

import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from flask import Blueprint, Response, request, stream_with_context

from gemma_server.engine.request import Timings
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.generation import ClientGone, Completion, Generation
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.web import sse
from gemma_server.web.body import read_body
from gemma_server.web.metrics import Metrics
from gemma_server.web.schema import EchoBody, PromptBody

# The peer has closed its end. Only Linux tells this before something is sent.
_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)


def blueprint(model: ServedModel, metrics: Metrics, max_steps: int | None) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("native", __name__)

    @routes.post("/echo")
    def echo() -> dict[str, Any]:
        return {"echo_prompt": read_body(EchoBody).prompt}

    @routes.post("/prompt")
    def prompt() -> Response | dict[str, Any]:
        loaded = model.require_ready()
        body = read_body(PromptBody)
        if body.stream and not isinstance(body.prompt, str):
            raise InvalidRequest("a list of prompts cannot be streamed", param="stream")
        context_length = loaded.engine.context_length
        steps = body.steps(limit=min(max_steps or context_length, context_length))
        generations = _submit(body, steps, loaded)
        if body.stream:
            return _stream(generations[0], metrics)
        return _answer(body, _run_all(generations, metrics))

    return routes


def _submit(body: PromptBody, steps: int, loaded: LoadedModel) -> list[Generation]:
    """Encode and queue all prompts, or none; an error names the prompt at fault."""
    engine, tokenizer = loaded.engine, loaded.tokenizer
    requests = []
    for index, text in enumerate(body.prompts):
        try:
            ids = tokenizer.encode(text)
            engine.check_prompt(len(ids))
        except RequestError as error:
            if isinstance(body.prompt, list):
                error.param = f"prompt[{index}]"
            raise
        requests.append(body.request(ids, steps, tokenizer.stop_ids))
    deadline = _deadline()
    gone = _gone_check()
    return [
        Generation(engine, tokenizer, handle, body.stops, client_gone=gone, deadline=deadline)
        for handle in engine.submit(requests)
    ]


def _run_all(generations: list[Generation], metrics: Metrics) -> list[Completion]:
    """Wait for all answers; when one fails, the others are given up."""

    def run(generation: Generation) -> Completion:
        try:
            completion = generation.run()
        except BaseException:
            for other in generations:
                other.cancel()
            raise
        metrics.completed(completion)
        return completion

    if len(generations) == 1:
        return [run(generations[0])]
    # Side by side, so that each frees its slot the moment its own stop string is there.
    with ThreadPoolExecutor(len(generations)) as pool:
        running = [pool.submit(run, generation) for generation in generations]
    errors = [error for future in running if (error := future.exception()) is not None]
    # The one that failed first took the others down; they only say that they were given up.
    for error in sorted(errors, key=lambda error: isinstance(error, ClientGone)):
        raise error
    return [future.result() for future in running]


def _stream(generation: Generation, metrics: Metrics) -> Response:
    """The streamed answer. The first piece is awaited: what fails before it has a status."""
    pieces = generation.pieces()
    first = next(pieces, "")
    events = _events(generation, chain([first], pieces), metrics)
    response = sse.response(stream_with_context(events))
    response.call_on_close(generation.cancel)  # also when no event was ever asked for
    return response


def _answer(body: PromptBody, completions: list[Completion]) -> dict[str, Any]:
    """A string answers a string; lists answer a list, with the usage summed."""
    usage = _usage(completions)
    timings = _timings([completion.timings for completion in completions])
    texts = [completion.text for completion in completions]
    reasons = [completion.finish_reason for completion in completions]
    single = isinstance(body.prompt, str)
    return {
        "response": texts[0] if single else texts,
        "finish_reason": reasons[0] if single else reasons,
        "usage": usage,
        "timings": timings,
    }


def _events(generation: Generation, pieces: Iterable[str], metrics: Metrics) -> Iterator[bytes]:
    """The stream's events; after a failure an error event, and then a broken body."""
    try:
        for piece in pieces:
            if piece:
                yield sse.event({"response": piece})
    except ClientGone:
        raise sse.BrokenBody from None
    except RequestError as error:
        yield sse.failure(error)
        raise sse.BrokenBody from error
    completion = generation.completion
    metrics.completed(completion)
    yield sse.event(
        {
            "response": "",
            "finish_reason": completion.finish_reason,
            "usage": _usage([completion]),
            "timings": _timings([completion.timings]),
        }
    )
    yield sse.DONE


def _usage(completions: list[Completion]) -> dict[str, int]:
    return {
        "prompt_tokens": sum(completion.prompt_tokens for completion in completions),
        "completion_tokens": sum(completion.completion_tokens for completion in completions),
        "cached_tokens": 0,  # no prefix is reused yet
    }


def _timings(timings: list[Timings]) -> dict[str, float]:
    """Milliseconds; for several prompts, which run side by side, the longest of each stage."""
    return {
        "queue_ms": _milliseconds(max(timing.queue_s for timing in timings)),
        "prefill_ms": _milliseconds(max(timing.prefill_s for timing in timings)),
        "decode_ms": _milliseconds(max(timing.decode_s for timing in timings)),
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _deadline() -> float | None:
    """The client's time limit on the monotonic clock, from `X-Request-Timeout-Ms`."""
    header = request.headers.get("X-Request-Timeout-Ms")
    if header is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", header) or not 1 <= int(header) <= 10**9:
        raise InvalidRequest(
            "X-Request-Timeout-Ms must be a whole number of milliseconds from 1 to 1000000000",
            param="X-Request-Timeout-Ms",
        )
    return time.monotonic() + int(header) / 1000


def _gone_check() -> Callable[[], bool]:
    """Tells whether the client has closed its connection, without reading from it.

    gunicorn hands the socket in; under a test client there is none. A client that half-closes
    after sending counts as gone: HTTP clients do not do that.
    """
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False

    def gone() -> bool:
        # Not by reading: bytes behind the request would hide its end. A poll object of its own,
        # since the prompts of a list ask from several threads.
        poller = select.poll()
        poller.register(connection, _HANGUP)
        return bool(poller.poll(0))

    return gone
