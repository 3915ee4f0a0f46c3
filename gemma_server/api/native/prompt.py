"""/prompt: what it accepts, does and answers."""

from typing_extensions import TypedDict

from gemma_server.api.job import Caller, Job, Usage
from gemma_server.api.schemas import PromptBody, as_list
from gemma_server.api.timing import Stages, timed
from gemma_server.engine.request import FinishReason, Request
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel


class PromptAnswer(TypedDict):
    """POST /prompt: a string answers a string, lists answer a list."""

    response: str | list[str]
    finish_reason: FinishReason | list[FinishReason]
    usage: Usage
    timings: dict[str, float]  # milliseconds of each stage


class PromptPart(TypedDict):
    """More of a streamed text."""

    response: str


def prompt_job(
    body: PromptBody, loaded: LoadedModel, max_steps: int | None, metrics: Metrics, caller: Caller
) -> Job:
    """Queue all its prompts.

    Raises:
        RequestError: one of them cannot be taken; then none is.
    """
    if body.stream and not isinstance(body.prompt, str):
        raise InvalidRequest("a list of prompts cannot be streamed", param="stream")
    context_length = loaded.engine.context_length
    steps = body.steps(limit=min(max_steps or context_length, context_length))
    requests = _requests(body, steps, loaded, caller.stages)
    return Job(loaded, requests, as_list(body.stop), metrics, caller)


def whole_answer(body: PromptBody, job: Job) -> PromptAnswer:
    """Wait for all of it."""
    completions = job.run()
    texts = [completion.text for completion in completions]
    reasons = [completion.finish_reason for completion in completions]
    single = isinstance(body.prompt, str)
    return {
        "response": texts[0] if single else texts,
        "finish_reason": reasons[0] if single else reasons,
        "usage": job.usage(),
        "timings": job.timings(),
    }


def last_part(job: Job) -> PromptAnswer:
    """How a streamed answer ended, and what it took."""
    [completion] = job.completions
    return {
        "response": "",
        "finish_reason": completion.finish_reason,
        "usage": job.usage(),
        "timings": job.timings(),
    }


def _requests(body: PromptBody, steps: int, loaded: LoadedModel, stages: Stages) -> list[Request]:
    """Encode all prompts; an error names the prompt at fault."""
    requests = []
    for index, text in enumerate(body.prompts):
        try:
            with timed(stages, "tokenize"):
                ids = loaded.tokenizer.encode(text)
            loaded.engine.check_prompt(len(ids))
        except RequestError as error:
            if isinstance(body.prompt, list):
                error.param = f"prompt[{index}]"
            raise
        requests.append(body.request(ids, steps, loaded.tokenizer.stop_ids))
    return requests
