"""OpenAI's routes: /v1/completions, /v1/chat/completions, /v1/models.

The official clients' sources say what they require of the wire: openai/openai-python,
`_streaming.py`, and openai/openai-go, `packages/ssestream`.
"""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.chat import (
    Wanted,
    encode_messages,
)
from gemma_server.api.constraints import Form
from gemma_server.api.errors import prompt_in
from gemma_server.api.job import Job
from gemma_server.api.openai.answers import (
    AnyChatChunk,
    AnyTextChunk,
    ChatCompletion,
    ChatForm,
    ChunkForm,
    TextCompletion,
    TextForm,
)
from gemma_server.api.openai.schema import (
    ChatCompletionBody,
    CompletionBody,
)
from gemma_server.api.openai.thinking import wants_thoughts
from gemma_server.api.operation import EVENTS, Operation, Stream, StreamType
from gemma_server.api.prompts import encode_prompt
from gemma_server.api.schemas import MAX_PROMPTS, as_list, check_tokens, seed_of
from gemma_server.api.tensorflow.status import VersionStatus, statuses
from gemma_server.api.timing import Stages, timed
from gemma_server.api.tools import declared, reading_of
from gemma_server.api.truncation import Truncation
from gemma_server.engine.request import MAX_BANS, Request
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel, LoadedModel
from gemma_server.serving.models import Models
from gemma_server.serving.served_model import ServedModel


class ModelCard(TypedDict):
    """A model in the list of models."""

    id: str
    object: Literal["model"]
    created: int  # seconds since 1970
    owned_by: str
    max_model_len: NotRequired[int]  # tokens, as vLLM has it; known once the model is in memory


class VersionedCard(ModelCard):
    """A model, with what TensorFlow Serving says of it."""

    model_version_status: list[VersionStatus]


class ModelCards(TypedDict):
    """GET /v1/models: all that answer requests."""

    object: Literal["list"]
    data: list[ModelCard]


def chat(body: ChatCompletionBody, models: Models, caller: Caller) -> ChatCompletion | Stream:
    """Answer a chat."""
    loaded = caller.hold(models.resolve, body.model)
    steps = body.steps(loaded.engine.context_length, loaded.max_steps)
    truncation = Truncation.of(loaded, steps, truncate=body.truncate)
    wanted = _wanted(body, loaded)
    ids = encode_messages(loaded, body.messages, wanted, truncation, caller.stages)
    requests = _requests(body, [ids], steps, loaded, _form(body, wanted))
    stops = [as_list(body.stop)] * len(requests)
    reading = reading_of(loaded, wanted.tools, only_one=not body.parallel_tool_calls)
    job = Job(
        loaded,
        requests,
        stops,
        models.metrics,
        caller,
        truncation,
        body.user,
        reading,
        body.priority,
    )
    form = ChatForm(loaded, body, caller)
    if body.stream:
        return Stream(job, ChunkForm(form, body))
    job.run()
    return form.answer(job, body.n)


def completions(body: CompletionBody, models: Models, caller: Caller) -> TextCompletion | Stream:
    """Continue texts."""
    loaded = caller.hold(models.resolve, body.model)
    steps = body.steps(loaded.engine.context_length, loaded.max_steps)
    truncation = Truncation.of(loaded, steps, truncate=body.truncate)
    prompts = _encode(body, loaded, truncation, caller.stages)
    requests = _requests(body, prompts, steps, loaded, Form(body.asked))
    stops = [as_list(body.stop)] * len(requests)
    job = Job(
        loaded,
        requests,
        stops,
        models.metrics,
        caller,
        truncation,
        body.user,
        priority=body.priority,
    )
    form = TextForm(loaded, prompts, body, caller)
    if body.stream:
        return Stream(job, ChunkForm(form, body))
    job.run()
    return form.answer(job, body.n)


def list_models(body: None, models: Models, caller: Caller) -> ModelCards:
    """All models that answer requests."""
    return {"object": "list", "data": [_card(*each) for each in models.known()]}


def one_model(body: None, models: Models, caller: Caller) -> VersionedCard:
    """The model of the name in the path."""
    model, loaded = models.look_at(caller.params["name"])
    if loaded is not None:
        caller.on_lease(loaded)
    states = statuses(models.states(model.public_name))
    return {**_card(model, loaded), "model_version_status": states}


def _wanted(body: ChatCompletionBody, loaded: GenerativeModel) -> Wanted:
    thinks = wants_thoughts(body.chat_template_kwargs, body.reasoning_effort, loaded)
    return Wanted(declared(loaded, body.shown_tools), thinks, body.goes_on)


def _requests(
    body: ChatCompletionBody | CompletionBody,
    prompts: list[list[int]],
    steps: int,
    loaded: GenerativeModel,
    form: Form,
) -> list[Request]:
    """`n` answers to each prompt, each with a seed of its own."""
    if len(prompts) * body.n > MAX_PROMPTS:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n = {body.n}: at most {MAX_PROMPTS} answers at once",
            param="n",
        )
    vocab_size = loaded.tokenizer.vocab_size
    stops = body.stop_ids(loaded.tokenizer.stop_ids, vocab_size)
    if body.min_tokens > steps:
        message = f"min_tokens: at most {steps} tokens are generated"
        raise InvalidRequest(message, param="min_tokens")
    if body.min_tokens > 0 and len(stops) > MAX_BANS:
        message = f"min_tokens goes with at most {MAX_BANS} stop tokens"
        raise InvalidRequest(message, param="min_tokens")
    if form.binds:
        body.refuse_other_ends(form.name, of_text=form.binds_text(loaded))
    bias = body.bias(vocab_size)
    return [
        Request(
            tuple(ids),
            steps,
            body.sampling(seed_of(body.seed, index), bias, loaded.sampling),
            stops,
            body.min_tokens,
            body.wanted_logprobs,
            prompt_logprobs=body.scores_prompt,
            constraint=constraint,
            cache_prompt=body.cache_prompt,
            cache_salt=body.cache_salt,
        )
        for ids in prompts
        for index, constraint in enumerate(form.start(loaded, ids, body.n))
    ]


def _form(body: ChatCompletionBody, wanted: Wanted) -> Form:
    """What the answers to a chat have to be."""
    return Form(
        body.asked,
        body.usable(wanted.tools),
        must_call=body.must_call,
        only_one_call=not body.parallel_tool_calls,
        thinks=wanted.thinks,
    )


def _encode(
    body: CompletionBody, loaded: GenerativeModel, truncation: Truncation, stages: Stages
) -> list[list[int]]:
    """The ids of each prompt; an error names the prompt at fault."""
    encoded = []
    for index, prompt in enumerate(body.prompts):
        param = f"prompt[{index}]" if body.has_several_prompts else "prompt"
        with timed(stages, "tokenize"), prompt_in(param):
            if isinstance(prompt, str):
                ids = encode_prompt(loaded, prompt, truncation)
            else:
                check_tokens(prompt, loaded.tokenizer.vocab_size, param)
                ids = truncation.ids(prompt)
                loaded.engine.check_prompt(len(ids))
        encoded.append(ids)
    return encoded


def _card(model: ServedModel, loaded: LoadedModel | None) -> ModelCard:
    card: ModelCard = {
        "id": model.public_name,
        "object": "model",
        "created": int(model.since if loaded is None else loaded.ready_at),
        "owned_by": "google",
    }
    if loaded is not None:
        card["max_model_len"] = loaded.context_length
    return card


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "openai_chat",
        "Answer a chat",
        chat,
        path="/v1/chat/completions",
        body=ChatCompletionBody,
        answer=ChatCompletion,
        stream=StreamType(EVENTS, AnyChatChunk),
    ),
    Operation(
        "openai_completions",
        "Continue texts",
        completions,
        path="/v1/completions",
        body=CompletionBody,
        answer=TextCompletion,
        stream=StreamType(EVENTS, AnyTextChunk),
    ),
    Operation(
        "openai_models",
        "List the model",
        list_models,
        method="GET",
        path="/v1/models",
        answer=ModelCards,
    ),
    Operation(
        "openai_model",
        "The model, if it has this name",
        one_model,
        method="GET",
        path="/v1/models/{name}",
        answer=VersionedCard,
    ),
)
