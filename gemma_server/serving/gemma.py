"""How a Gemma is loaded: files opened -> programs and weights, side by side -> runner -> engine."""

import logging
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gemma_server.engine.draft_model import DraftModel
from gemma_server.engine.embedding import EmbeddingEngine, EmbeddingLimits
from gemma_server.engine.watchdog import StepTimes
from gemma_server.errors import ModelLoadError
from gemma_server.executor.compile_counter import CompileCounter
from gemma_server.model.config import GemmaConfig
from gemma_server.private_directory import PrivateDirectory
from gemma_server.serving.checkpoint import Checkpoint, open_checkpoint
from gemma_server.serving.device_memory import device_bytes
from gemma_server.serving.engines import OnDeath, Wrap, limits_of, start_engine
from gemma_server.serving.gently import step_back
from gemma_server.serving.model import (
    EmbeddingModel,
    GenerativeModel,
    LoadedModel,
    ModelInfo,
    Stages,
    byte_rate,
)
from gemma_server.serving.on_device import put_on_device
from gemma_server.settings import Settings
from gemma_server.text.prompted_tools import with_tools
from gemma_server.weights.architecture import family_of
from gemma_server.weights.demo import demo_checkpoint

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from gemma_server.executor.compile_cache import CompileCache
    from gemma_server.executor.dispatch_policy import DispatchPolicy
    from gemma_server.executor.embedding import EmbeddingPrograms, JaxEmbeddingRunner
    from gemma_server.executor.programs import Programs
    from gemma_server.executor.runner import JaxRunner
    from gemma_server.model.transformer import Params

_PIECE_BYTES = 430  # measured: what a tokenizer takes of memory for each piece

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedGemma:
    """A Gemma whose files are open: what is known before its programs and weights are there."""

    settings: Settings
    stages: Stages
    compilations: CompileCounter
    checkpoint: Checkpoint
    began: float  # on the monotonic clock
    device: Any
    native: bool
    dtype: "DTypeLike"
    context_length: int
    policy: "DispatchPolicy"
    gently: bool
    kept: int = 0  # slots of the cache beyond those of rows
    draft: "OpenedGemma | None" = None  # the smaller model that foresees tokens

    @property
    def needs_bytes(self) -> int:
        """What weights, cache and, where it is the same memory, the tokenizer take, and what the
        programs do, if they were compiled before. Tables that stay in their files take none."""
        from gemma_server.executor.programs import SCRATCH

        programs = _programs(self)
        scratch = _compile_cache(self, programs).noted(SCRATCH) or 0
        return self.kept_bytes + scratch + (0 if self.draft is None else self.draft.needs_bytes)

    @property
    def kept_bytes(self) -> int:
        """The same without the programs, and without the draft model."""
        kept = _programs(self).memory_bytes
        if self.device.platform == "cpu":
            kept += self.checkpoint.tokenizer.vocab_size * _PIECE_BYTES
            table = self.checkpoint.weights.own_table
            kept -= table.layout.nbytes if table is not None and table.is_mapped else 0
        return kept

    @property
    def device_bytes(self) -> float:
        """The memory that its device has for models."""
        return device_bytes(self.device)

    def load(self, on_death: OnDeath, wrap: Wrap = lambda runner: runner) -> LoadedModel:
        """The model, ready to answer.

        Raises:
            ModelLoadError: it cannot be loaded; the text says what to do.
        """
        with self.compilations.blamed():
            if self.checkpoint.config.bidirectional:
                return _load_embedding(self, on_death)
            return _load_generative(self, on_death, wrap)

    def common(self) -> dict[str, Any]:
        """The fields that every loaded model has."""
        return {
            "name": self.settings.model_name or self.checkpoint.config.name,
            "tokenizer": self.checkpoint.tokenizer,
            "device": _describe(self.device),
            "load_s": time.monotonic() - self.began,
            "compilations": self.compilations,
            "info": _info(self.checkpoint),
        }


def open_gemma(settings: Settings, stages: Stages, *, gently: bool) -> OpenedGemma:
    """The model that the settings name; `stages` is told of each stage. `gently`: others answer
    meanwhile, and go first.

    Raises:
        ModelLoadError: it cannot be loaded; the text says what to do.
    """
    compilations = CompileCounter()
    with compilations.blamed():
        opened = _open(settings, stages, compilations, gently)
        if opened.checkpoint.config.bidirectional:
            return opened
        return replace(opened, kept=_kept_slots(opened), draft=_opened_draft(opened))


def _open(
    settings: Settings, stages: Stages, compilations: CompileCounter, gently: bool
) -> OpenedGemma:
    began = time.monotonic()
    stages.at("opening the checkpoint")
    path = settings.model_checkpoint or demo_checkpoint(settings.cache_dir)
    checkpoint = open_checkpoint(path, settings.model_tokenizer)

    stages.at("starting the device")
    import jax

    from gemma_server.executor.dispatch_policy import ON_CPU, ON_GPU

    device = jax.devices()[0]
    on_cpu, wanted = device.platform == "cpu", settings.dtype
    if wanted == "auto" and on_cpu and checkpoint.config.bidirectional:
        wanted = "float32"  # what int8 would cost a vector is kept for as long as the index is
    native = on_cpu and _register_kernels(wanted, settings, stages)
    return OpenedGemma(
        settings,
        stages,
        compilations,
        checkpoint,
        began,
        device,
        native,
        _dtype(wanted, device.platform, native),
        _context_length(settings, checkpoint.config),
        ON_CPU if on_cpu else ON_GPU,
        gently,
    )


def _load_generative(opened: OpenedGemma, on_death: OnDeath, wrap: Wrap) -> GenerativeModel:
    settings, policy = opened.settings, opened.policy
    runner, programs = _runner(opened)
    draft_model, draft_bytes = (None, 0)
    if opened.draft is not None:
        draft_model, draft_bytes = _draft_model(opened.draft, opened.checkpoint.config.vocab)
    step_times = _warmed_up(opened, runner)
    limits = limits_of(
        settings,
        opened.context_length,
        programs.chunks,
        steps=policy.steps,
        kept=opened.kept,
        rows=tuple(programs.row_counts) if policy.steps == 1 else (),
        gap_s=policy.gap_s,
    )
    engine = start_engine(
        wrap(runner),
        limits,
        on_death,
        step_times,
        max_in_flight=policy.max_in_flight,
        draft_model=draft_model,
    )
    return GenerativeModel(
        chat=with_tools(opened.checkpoint.chat),
        engine=engine,
        token_bytes=runner.token_bytes,
        max_steps=settings.max_steps,
        sampling=opened.checkpoint.sampling,
        weight_bytes=runner.weight_bytes + draft_bytes,
        memory_bytes=opened.needs_bytes,
        **opened.common(),
    )


def _runner(opened: OpenedGemma) -> "tuple[JaxRunner, Programs]":
    """What runs the model, with its weights, and its programs."""
    from gemma_server.executor.runner import JaxRunner

    programs = _generative_programs(opened)
    return JaxRunner(programs, _compile_and_read(opened, programs), opened.compilations), programs


def _programs(opened: OpenedGemma) -> "Programs | EmbeddingPrograms":
    """The model's programs, not compiled yet."""
    if opened.checkpoint.config.bidirectional:
        return _embedding_programs(opened)
    return _generative_programs(opened)


def _generative_programs(opened: OpenedGemma) -> "Programs":
    from gemma_server.executor.programs import Programs

    table = opened.checkpoint.weights.own_table
    return Programs(
        opened.checkpoint.config,
        slots=opened.settings.slots,
        kept=opened.kept,
        context_length=opened.context_length,
        dtype=opened.dtype,
        native=opened.native,
        own_table=None if table is None else table.layout,
        policy=opened.policy,
    )


def _embedding_programs(opened: OpenedGemma) -> "EmbeddingPrograms":
    from gemma_server.executor.embedding import EmbeddingPrograms

    return EmbeddingPrograms(
        opened.checkpoint.config,
        context_length=opened.context_length,
        dtype=opened.dtype,
        native=opened.native,
        policy=opened.policy,
    )


def _opened_draft(opened: OpenedGemma) -> OpenedGemma | None:
    """The model that `draft_checkpoint` names, opened.

    Raises:
        ModelLoadError: it cannot be opened, or cannot draft for this one.
    """
    path = opened.settings.draft_checkpoint
    if path is None:
        return None
    if opened.policy.steps > 1:
        raise ModelLoadError("--draft-checkpoint: drafts are tried on a CPU alone; leave it out")
    opened.stages.at("opening the draft model")
    small = open_checkpoint(path)
    if small.config.bidirectional:
        raise ModelLoadError(f"--draft-checkpoint {path}: it makes embeddings, no text")
    if not small.tokenizer.agrees_with(opened.checkpoint.tokenizer):
        raise ModelLoadError(
            f"--draft-checkpoint {path}: its tokens are not those of "
            f"{opened.checkpoint.weights.path}; take a smaller model of the same generation"
        )
    length = min(opened.context_length, small.config.context_length)
    return replace(opened, checkpoint=small, context_length=length)


def _draft_model(small: OpenedGemma, vocab: int) -> tuple[DraftModel, int]:
    """The draft model for one of so large a vocabulary, and the bytes of its weights."""
    runner, programs = _runner(small)
    _warmed_up(small, runner)
    model = DraftModel(
        runner,
        slots=small.settings.slots,
        context_length=small.context_length,
        chunks=programs.chunks,
        rows=programs.row_counts,
        vocab=vocab,
    )
    return model, runner.weight_bytes


def _kept_slots(opened: OpenedGemma) -> int:
    """How many slots of the cache `prompt_cache_bytes` pays for.

    Raises:
        ModelLoadError: it is too little for one.
    """
    from gemma_server.executor.programs import cache_length
    from gemma_server.model.cache import stored_dtype

    wanted, config = opened.settings.prompt_cache_bytes, opened.checkpoint.config
    numbers = config.cached_numbers_per_token * cache_length(opened.context_length)
    each = numbers * stored_dtype(opened.dtype).itemsize
    if 0 < wanted < each:
        raise ModelLoadError(
            f"--prompt-cache-bytes {wanted}: one prompt of this model takes up to {each} bytes; "
            "give so much, or lower --context-length"
        )
    return wanted // each


def _load_embedding(opened: OpenedGemma, on_death: OnDeath) -> EmbeddingModel:
    from gemma_server.executor.embedding import JaxEmbeddingRunner

    settings, config = opened.settings, opened.checkpoint.config
    programs = _embedding_programs(opened)
    runner = JaxEmbeddingRunner(programs, _compile_and_read(opened, programs), opened.compilations)
    step_times = _warmed_up(opened, runner)
    limits = EmbeddingLimits(opened.context_length, settings.max_queue, settings.max_queue_tokens)
    engine = EmbeddingEngine(runner, limits, on_death, step_times)
    engine.start()
    return EmbeddingModel(
        engine=engine,
        width=config.embedding_width,
        weight_bytes=runner.weight_bytes,
        memory_bytes=opened.needs_bytes,
        **opened.common(),
    )


def _warmed_up(opened: OpenedGemma, runner: "JaxRunner | JaxEmbeddingRunner") -> StepTimes:
    """Run each program once, so that no step can take longer than all of it."""
    opened.stages.at("warming up")
    warming = time.monotonic()
    runner.warm_up()
    return StepTimes(time.monotonic() - warming, opened.settings.hung_after)


def _compile_and_read(opened: OpenedGemma, programs: "Programs | EmbeddingPrograms") -> "Params":
    """Compile while the weights are read: compiling needs their shapes alone."""
    cache = _compile_cache(opened, programs)
    progress = _Progress(opened.stages)

    def compile_all() -> None:
        with opened.compilations.blamed():
            programs.compile(progress.compiled, cache)

    # Threads of their own, also for reading: the engine's thread would inherit the niceness.
    pool = ThreadPoolExecutor(2, "compile and read", step_back if opened.gently else None)
    try:
        compiling = pool.submit(compile_all)
        reading = pool.submit(put_on_device, opened.checkpoint, programs.dtype, progress.loaded)
        params = reading.result()
        compiling.result()
    finally:
        progress.stop()  # bad weights are reported at once, not after compiling
        pool.shutdown(wait=False)
    return params


def _compile_cache(opened: OpenedGemma, programs: "Programs | EmbeddingPrograms") -> "CompileCache":
    from gemma_server.executor.compile_cache import CompileCache

    directory = PrivateDirectory(opened.settings.cache_dir / "programs")
    return CompileCache(directory, programs.configuration)


def _info(checkpoint: Checkpoint) -> ModelInfo:
    config, stored = checkpoint.config, checkpoint.weights.stored
    return ModelInfo(
        family=family_of(config),
        format=checkpoint.weights.format,
        stored_as=max(stored, key=lambda kind: stored[kind]),
        parameters=config.parameters,
        file_bytes=sum(stored.values()),
        trained_context=config.context_length,
    )


def _context_length(settings: Settings, config: GemmaConfig) -> int:
    if settings.context_length > config.context_length:
        logger.warning(
            "--context-length %d is more than the %d tokens that %s can take: using these",
            settings.context_length,
            config.context_length,
            config.name,
        )
    return min(settings.context_length, config.context_length)


class _Progress:
    """Shows compiling and loading weights, which run in parallel, as one stage."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._compiled, self._loaded = 0.0, 0.0  # shares done
        self._began = time.monotonic()
        self._detail = ""
        self._stopped = False

    def stop(self) -> None:
        """Loading is over; if it failed, compiling ends after the current program."""
        self._stopped = True

    def compiled(self, share: float) -> None:
        """Note the share of programs compiled. Raises CancelledError if loading has failed."""
        if self._stopped:
            raise CancelledError
        self._compiled = share
        self._show()

    def loaded(self, done: int, total: int) -> None:
        """Note how many bytes of the weights are loaded."""
        self._loaded = done / total
        self._detail = byte_rate(done, total, time.monotonic() - self._began)
        self._show()

    def _show(self) -> None:
        share = (self._compiled + self._loaded) / 2
        self._stages.at("compiling and loading weights", share, self._detail)


def _register_kernels(dtype: str, settings: Settings, stages: Stages) -> bool:
    """Register the native kernels if they serve the dtype; False if they cannot be used."""
    from gemma_server.native.library import register

    if dtype not in ("auto", "int8"):
        return False
    stages.at("preparing the native kernels")
    return register(PrivateDirectory(settings.cache_dir / "native"))


def _dtype(name: str, platform: str, native: bool) -> "DTypeLike":
    import jax.numpy as jnp

    if name == "auto":
        on_cpu = "int8" if native else "float32"
        name = on_cpu if platform == "cpu" else "bfloat16"
    if name == "int8" and platform != "cpu":
        raise ModelLoadError(f"--dtype int8 is for CPUs, this is a {platform}; use bfloat16")
    return jnp.dtype(name)


def _describe(device: object) -> str:
    platform, kind = getattr(device, "platform", ""), getattr(device, "device_kind", "")
    return "CPU" if platform == "cpu" else f"{platform.upper()} {kind}".strip()
