"""All the generations that one request asks for: queued together, given up together."""

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NotRequired

from typing_extensions import TypedDict

from gemma_server.api.admission import admitting
from gemma_server.api.caller import Caller
from gemma_server.api.generation import Completion, Generation, Piece
from gemma_server.api.timing import milliseconds
from gemma_server.api.truncation import Truncation
from gemma_server.engine.engine import Engine
from gemma_server.engine.priority import Priority
from gemma_server.engine.request import Handle, Request, Timings
from gemma_server.errors import InvalidRequest
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import GenerativeModel
from gemma_server.serving.rate_limit import Charge
from gemma_server.text.stop_strings import StopStrings
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.text.turn_stream import Reading

KEEPALIVE_S = 5.0  # between two keepalives of a stream without text

Arrival = tuple[int, Piece]  # which generation, and what came


class Usage(TypedDict):
    """Tokens of all prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompts, which did not have to be read


class Costs(TypedDict):
    """What every dialect's answer ends with."""

    timings: dict[str, float]  # milliseconds of each stage, and counts of drafts
    truncated_tokens: NotRequired[int]


class Job:
    """The generations of one request, in its order, each with stop strings of its own. `priority`
    is what the body says of it, which goes before what the caller says.

    Iterate `pieces`, or `run`; then `completions` is there. Leaving early frees all slots.

    Raises:
        InvalidRequest, Overloaded, ExceedsRateLimit, DeadlineExceeded, GenerationFailed, NotReady:
            nothing was queued.
    """

    def __init__(
        self,
        loaded: GenerativeModel,
        requests: list[Request],
        stops: Sequence[Sequence[str]],
        metrics: Metrics,
        caller: Caller,
        truncation: Truncation | None = None,
        user: str | None = None,
        reading: Reading | None = None,
        priority: Priority | None = None,
    ) -> None:
        self.loaded = loaded
        self._truncation = truncation
        self._metrics, self._compilations = metrics, loaded.compilations
        self._compiled_s = loaded.compilations.seconds
        requests = _with_control_stops(requests, stops, loaded.tokenizer)
        name, returns = caller.shares_as(user)
        most = sum(_most_tokens(request, loaded) for request in requests)
        with admitting(loaded, caller, metrics, most) as charge:
            handles = loaded.engine.submit(
                requests,
                caller.deadline,
                name,
                returns=returns,
                priority=priority or caller.priority,
            )
        caller.held.callback(_end, loaded.engine, handles, charge)
        cut = {each.degraded_to for each in handles if each.degraded_to is not None}
        self.degraded_to = min(cut, default=None)  # tokens; None: no answer is cut short
        if self.degraded_to is not None:
            metrics.degraded()
            caller.on_degraded(self.degraded_to)
        # Not for requests that were refused: they may be many.
        strings = {each: StopStrings(each) for each in set(map(tuple, stops))}
        self._generations = [
            Generation(
                loaded.engine,
                loaded.tokenizer,
                handle,
                strings[tuple(own)],
                reading,
                disconnected=caller.disconnected,
                deadline=caller.deadline,
                keepalive_s=KEEPALIVE_S,
            )
            for handle, own in zip(handles, stops, strict=True)
        ]
        self._stages = caller.stages
        caller.on_job(self)

    @property
    def completions(self) -> list[Completion]:
        """How each ended. Only after `pieces` is exhausted."""
        return [generation.completion for generation in self._generations]

    def run(self) -> list[Completion]:
        """Wait for all answers."""
        for _ in self.pieces():
            pass
        return self.completions

    def cancel(self) -> None:
        """Free all slots and places in the queue; what has ended stays as it is."""
        for generation in self._generations:
            generation.cancel()

    def pieces(self) -> Iterator[Arrival]:
        """The pieces of all generations as they come; when one fails, the others are cancelled.

        Raises:
            RequestError, Disconnected: as `Generation.pieces`.
        """
        if len(self._generations) == 1:
            yield from ((0, piece) for piece in self._generations[0].pieces())
        else:
            yield from self._merged()
        for done in self.completions:
            self._metrics.completed(done.prompt_tokens, done.completion_tokens, done.timings)

    def usage(self) -> Usage:
        """Tokens of all prompts and answers."""
        completions = self.completions
        return {
            "prompt_tokens": sum(completion.prompt_tokens for completion in completions),
            "completion_tokens": sum(completion.completion_tokens for completion in completions),
            "cached_tokens": sum(completion.cached_tokens for completion in completions),
        }

    def costs(self) -> Costs:
        """Timings, and if truncation was allowed, the number of tokens dropped."""
        costs: Costs = {"timings": self.timings()}
        if self._truncation is not None and self._truncation.room is not None:
            costs["truncated_tokens"] = self._truncation.dropped
        return costs

    def timings(self) -> dict[str, float]:
        """The stages, and how many tokens of the answers were foreseen and how many of these came
        true."""
        drafts = [generation.drafts for generation in self._generations]
        drafted, accepted = map(sum, zip(*drafts, strict=True))
        return {**self.stages(), "draft_tokens": drafted, "accepted_tokens": accepted}

    def stages(self) -> dict[str, float]:
        """Milliseconds of each stage up to now, those before the job included. Generations run in
        parallel: the longest counts in each stage."""
        timings = [generation.timings for generation in self._generations]
        compile_s = self._compilations.seconds - self._compiled_s
        return {**self._stages, **_stages(timings), "compile_ms": milliseconds(compile_s)}

    def _merged(self) -> Iterator[Arrival]:
        # One thread each: each frees its slot as soon as its own stop string is there.
        arrived: queue.SimpleQueue[tuple[int, Piece | BaseException | None]] = queue.SimpleQueue()

        def read(index: int) -> None:
            try:
                for piece in self._generations[index].pieces():
                    arrived.put((index, piece))
                arrived.put((index, None))
            except BaseException as error:
                arrived.put((index, error))

        running = len(self._generations)
        with ThreadPoolExecutor(running) as pool:
            try:
                for index in range(running):
                    pool.submit(read, index)
                while running:
                    index, item = arrived.get()
                    if isinstance(item, BaseException):
                        raise item
                    if item is None:
                        running -= 1
                    else:
                        yield index, item
            finally:
                self.cancel()


def _most_tokens(request: Request, loaded: GenerativeModel) -> int:
    """Of its prompt and its answer."""
    return min(len(request.token_ids) + request.max_new_tokens, loaded.context_length)


def _end(engine: Engine, handles: Sequence[Handle], charge: Charge) -> None:
    """Free all slots, and pay for what was used: the answer is complete, or given up."""
    for handle in handles:
        engine.cancel(handle)
    charge.settle(sum(len(each.request.token_ids) + each.sampled_tokens for each in handles))


def _with_control_stops(
    requests: list[Request], stops: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> list[Request]:
    """A stop string that spells a control token is that token, which has no text."""

    def with_own(request: Request, own: Sequence[str]) -> Request:
        controls = {found for stop in own if (found := tokenizer.control_id(stop)) is not None}
        return replace(request, stop_ids=request.stop_ids | controls) if controls else request

    try:
        return [with_own(*each) for each in zip(requests, stops, strict=True)]
    except ValueError as error:
        raise InvalidRequest(f"stop: {error}", param="stop") from None


def _stages(timings: list[Timings]) -> dict[str, float]:
    return {
        "queue_ms": milliseconds(max(timing.queue_s for timing in timings)),
        "prefill_ms": milliseconds(max(timing.prefill_s for timing in timings)),
        "decode_ms": milliseconds(max(timing.decode_s for timing in timings)),
    }
