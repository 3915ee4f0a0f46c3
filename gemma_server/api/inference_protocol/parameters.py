"""The options of a request, by our own names and by those that Triton's users know.

They are those of Triton's vLLM backend (triton-inference-server/vllm_backend, `src/utils`).
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from gemma_server.api.native.schema import PromptOptions
from gemma_server.api.schemas import WHOLE, Penalty, RepetitionPenalty, within
from gemma_server.engine.constraint import Constraint
from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest


class Parameters(PromptOptions):
    """Unknown ones are refused by name."""

    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    exclude_input_in_output: bool = True  # Triton's default is false
    stream: bool | None = None

    def steps(self, limit: int) -> int:
        """The most tokens to generate, by one of the two names.

        Raises:
            InvalidRequest: both are there, or more was asked for than `limit`.
        """
        if self.max_tokens is None:
            return super().steps(limit)
        if "sampling_steps" in self.model_fields_set:
            message = "max_tokens: it does not go with sampling_steps, which means the same"
            raise InvalidRequest(message, param="max_tokens")
        return within(self.max_tokens, limit, "max_tokens")

    def request(
        self,
        token_ids: list[int],
        steps: int,
        stop_ids: frozenset[int],
        constraint: Constraint | None,
    ) -> Request:
        """The engine's request for one encoded prompt."""
        request = super().request(token_ids, steps, stop_ids, constraint)
        sampling = replace(
            request.sampling,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
        )
        return replace(request, sampling=sampling)

    def text_output(self, prompt: str, text: str) -> str:
        """The text that is answered."""
        return text if self.exclude_input_in_output else prompt + text

    def refuse_to_stream(self) -> None:
        """Refuse `stream` where the whole answer comes at once.

        Raises:
            InvalidRequest: it is true.
        """
        if self.stream:
            message = "stream: this route cannot be streamed; ask generate_stream"
            raise InvalidRequest(message, param="stream")
