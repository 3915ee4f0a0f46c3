"""What programs compute: a prefill step, decode steps, a copy, over the state on the device."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from gemma_server.engine.plan import Chunk
from gemma_server.engine.request import MAX_TOP_LOGPROBS
from gemma_server.executor.operands import (
    SAMPLED,
    SlotParams,
    pack_params,
    unpack_chunk,
    unpack_params,
)
from gemma_server.executor.variants import ProgramVariant
from gemma_server.model.cache import Cache, copy_slot, empty_cache
from gemma_server.model.logprobs import score_words, scored, unscored
from gemma_server.model.masks import Masks
from gemma_server.model.sampling import Adjusted, Choose, always, never, sample
from gemma_server.model.transformer import Params, Transformer

SCORED = 8  # prompt tokens whose logits are in memory at once
_TOP = MAX_TOP_LOGPROBS


class State(NamedTuple):
    """What stays on the device between programs."""

    cache: Cache
    tokens: jax.Array  # [slots, S] i32: the ids of prompt and answer by position
    params: jax.Array  # [slots + 1, words] i32; padding rows read the last, never written


class Steps:
    """The bodies of programs. With `branches` a program skips work depending on its data."""

    def __init__(self, model: Transformer, slots: int, length: int, *, branches: bool) -> None:
        self.model, self.slots, self.length, self.branches = model, slots, length, branches

    def new_state(self) -> State:
        """An empty cache, and greedy slots."""
        config, numerics = self.model.config, self.model.numerics
        default = pack_params(Chunk(0, 0, 0, (), None))
        return State(
            empty_cache(config, self.slots, self.length, numerics.dtype),
            jnp.zeros((self.slots, self.length), jnp.int32),
            jnp.tile(default, (self.slots + 1, 1)),
        )

    def copy(self, state: State, words: jax.Array) -> State:
        """Copy the first positions of one slot's cache and text into another's, and maybe some
        behind them: words [3] i32."""
        source, target, length = words
        block = self.model.numerics.block
        return State(
            tuple(copy_slot(layer, source, target, length, block) for layer in state.cache),
            state.tokens.at[target].set(state.tokens[source]),
            state.params,
        )

    def prefill(
        self,
        params: Params,
        state: State,
        words: jax.Array,
        mask: jax.Array,
        *,
        variant: ProgramVariant,
    ) -> tuple[State, jax.Array]:
        """Read a chunk into its slot. If wanted, sample the next token, of those in mask [1, W],
        and score the ids that follow the chunk's tokens: [1 + T, words] i32."""
        chunk = unpack_chunk(words)
        slots, index = chunk.slot[None], jnp.arange(chunk.tokens.shape[0])
        at = jnp.where(index < chunk.filled, chunk.offset + index, self.length)
        text = chunk.tokens[None], at[None]
        stream, cache = self._apply("begin", params, *text, state.cache, slots)
        tokens = state.tokens.at[chunk.slot, at].set(chunk.tokens, mode="drop")
        slot_params = unpack_params(chunk.params[None])
        behind = (chunk.offset + chunk.filled)[None]
        last = jax.tree.map(
            lambda made: jax.lax.dynamic_slice_in_dim(made, chunk.filled - 1, 1, axis=1), stream
        )

        def sampled_next() -> jax.Array:
            hidden = self._apply("finish", params, last, behind[None] - 1, cache, slots)
            texts, masks = (tokens, slots), Masks(chunk.masked[None], mask)
            return self._sample(params, hidden[0], slot_params, behind, texts, masks, variant)

        def scored_prompt() -> jax.Array:
            hidden = self._apply("finish", params, stream, at[None], cache, slots)
            return self._scored(params, hidden[0], chunk.scored)

        sampled = (jax.lax.cond if self.branches else always)(
            chunk.sample, sampled_next, lambda: jnp.zeros((1, score_words(_TOP)), jnp.int32)
        )
        prompt = self._choose(variant.scoring)(
            chunk.score, scored_prompt, lambda: unscored(chunk.scored, _TOP)
        )
        state = State(
            cache,
            tokens.at[slots, behind].set(sampled[:, 0], mode="drop"),
            state.params.at[chunk.slot].set(chunk.params),
        )
        return state, jnp.concatenate([sampled, prompt])

    def decode(
        self,
        params: Params,
        state: State,
        rows: jax.Array,
        masks: jax.Array,
        *,
        steps: int,
        variant: ProgramVariant,
    ) -> tuple[State, jax.Array]:
        """Feed each row's token at its position and sample the next, as many times as the row
        asks: rows [B, ROW_WORDS] i32, masks [B, W] i32 -> [steps, B, words] i32.

        Rows of one slot at positions behind each other are a draft: attention sees all of them.

        Padding rows have a slot and a position past the end, where all writes are dropped. A row
        that has reached the cache's end or has had its steps gets such a position too.
        """
        slots, positions, wanted, masked, drafted = rows.T
        slot_params = unpack_params(state.params[slots])
        of_rows = Masks(masked != 0, masks)

        def step(
            carry: tuple[Cache, jax.Array], index: jax.Array | int
        ) -> tuple[tuple[Cache, jax.Array], jax.Array]:
            cache, tokens = carry
            at = positions + index
            if steps > 1:
                at = jnp.where(index < wanted, at, self.length)
            fed = tokens.at[slots, at].get(mode="clip")
            text = fed[:, None], at[:, None]
            hidden, cache = self._apply("__call__", params, *text, cache, slots)
            texts = tokens, slots
            sampled = self._sample(
                params, hidden[:, 0], slot_params, at + 1, texts, of_rows, variant
            )
            return (cache, tokens.at[slots, at + 1].set(sampled[:, 0], mode="drop")), sampled

        tokens = state.tokens
        if steps == 1:  # a draft is put where sampled tokens are
            known = tokens.at[slots, positions].get(mode="clip")
            fed = jnp.where(drafted == SAMPLED, known, drafted)
            tokens = tokens.at[slots, positions].set(fed, mode="drop")
        carry = state.cache, tokens
        if steps == 1:
            carry, one = step(carry, 0)
            sampled = one[None]
        else:
            carry, sampled = jax.lax.scan(step, carry, jnp.arange(steps))
        return State(*carry, state.params), sampled

    def _choose(self, able: bool) -> Choose:
        """How a program does what only some rows need: by condition, always or never."""
        if self.branches:
            return jax.lax.cond
        return always if able else never

    def _sample(
        self,
        params: Params,
        hidden: jax.Array,
        slot_params: SlotParams,
        positions: jax.Array,
        texts: tuple[jax.Array, jax.Array],
        masks: Masks,
        variant: ProgramVariant,
    ) -> jax.Array:
        """Sample the tokens at positions [B] from hidden [B, D]: [B, words] i32.

        `texts` are the tokens of all slots [slots, S], and the slot of each row [B].
        """
        logits, masks = self._masked_logits(params, hidden, slot_params, positions, masks)
        tokens, slots = texts
        adjusted = Adjusted(
            logits,
            slot_params.penalties,
            masks,
            lambda: tokens.at[slots].get(mode="clip"),
            self._choose(variant.penalties),
        )
        ids = sample(adjusted, slot_params.how, positions, self._choose(variant.sampling))
        return self._choose(variant.logprobs)(
            jnp.any(slot_params.logprobs),
            lambda: scored(logits, ids, _TOP),
            lambda: unscored(ids, _TOP),
        )

    def _masked_logits(
        self,
        params: Params,
        hidden: jax.Array,
        slot_params: SlotParams,
        positions: jax.Array,
        masks: Masks,
    ) -> tuple[jax.Array, Masks]:
        """The logits, and the masks that are still to be applied. A native kernel applies those of
        rows without logprobs, which are the model's own, and leaves out what is padding."""
        if not self.model.numerics.native:
            return self._logits(params, hidden), masks
        padding = positions > self.length
        spared = Masks((masks.active & ~slot_params.logprobs) | padding, masks.words)
        logits: jax.Array = self._apply("logits", params, hidden, spared)
        return logits, Masks(masks.active & slot_params.logprobs, masks.words)

    def _scored(self, params: Params, hidden: jax.Array, ids: jax.Array) -> jax.Array:
        """Score ids [T], which follow hidden [T, D], `SCORED` at a time: [T, words]."""

        def score(block: tuple[jax.Array, jax.Array]) -> jax.Array:
            # Without the barrier XLA:CPU converts a bfloat16 table once, whole, outside the loop.
            table, block = jax.lax.optimization_barrier((params["embedder"], block))
            return scored(self._logits({"embedder": table}, block[0]), block[1], _TOP)

        blocks = hidden.reshape(-1, SCORED, hidden.shape[-1]), ids.reshape(-1, SCORED)
        return cast(jax.Array, jax.lax.map(score, blocks)).reshape(ids.shape[0], -1)

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        logits: jax.Array = self._apply("logits", params, hidden)
        return logits

    def _apply(self, method: str, params: Params, *inputs: Any) -> Any:
        """What the model's method makes of the inputs, with these weights."""
        return self.model.apply({"params": params}, *inputs, method=method)
