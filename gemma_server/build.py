"""The composition root: settings -> weights -> programs -> engine -> a model that answers."""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_server.engine.engine import Engine
from gemma_server.engine.fake import FakeRunner, fake_tokenizer
from gemma_server.engine.plan import Runner
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.errors import ModelLoadError
from gemma_server.model.config import GemmaConfig
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.settings import Settings
from gemma_server.text.tokenizer import Tokenizer, model_from_pieces
from gemma_server.weights.demo import demo_checkpoint
from gemma_server.weights.gguf import GgufWeights
from gemma_server.weights.orbax import OrbaxWeights
from gemma_server.weights.source import WeightSource, load_leaves

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from gemma_server.model.transformer import Params

logger = logging.getLogger(__name__)

OnDeath = Callable[[BaseException], None]
# Embedding tables may have a few rows more than the tokenizer has pieces: Kaggle's Gemma 1 and 2
# have 128, Hugging Face's larger Gemma 3 have 64.
_PADDING_ROWS = 256


def load_model(settings: Settings, model: ServedModel, on_death: OnDeath) -> None:
    """Load what the settings name and make `model` ready, telling it each stage on the way.

    Raises:
        ModelLoadError: the model cannot be loaded; the text says what to do.
    """
    load = _load_fake if settings.fake else _load_gemma
    model.ready(load(settings, model, on_death))


def _load_fake(settings: Settings, model: ServedModel, on_death: OnDeath) -> LoadedModel:
    return LoadedModel(
        name=settings.model_name or "fake",
        tokenizer=fake_tokenizer(),
        engine=_start(
            FakeRunner(settings.slots), _limits(settings, settings.context_length, 256), on_death
        ),
        device="no device",
        load_s=0.0,
        compilations=lambda: 0,
    )


def _load_gemma(settings: Settings, model: ServedModel, on_death: OnDeath) -> LoadedModel:
    began = time.monotonic()
    model.at("opening the checkpoint")
    source = _open(settings)
    tokenizer = _tokenizer(settings, source)
    config = source.config
    if not tokenizer.vocab_size <= config.vocab <= tokenizer.vocab_size + _PADDING_ROWS:
        raise ModelLoadError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but {source.path} embeds "
            f"{config.vocab}: they do not belong together"
        )

    model.at("starting the device")
    _use_compile_cache(settings.cache_dir / "jax")
    import jax

    from gemma_server.engine.compilations import count_compilations
    from gemma_server.engine.runner import CHUNKS, JaxRunner, Programs

    compilations = count_compilations()
    device = jax.devices()[0]
    dtype = _dtype(settings.dtype, device.platform)
    context_length = _context_length(settings, config)
    programs = Programs(config, slots=settings.slots, context_length=context_length, dtype=dtype)

    # Compiling needs the shapes alone, so it shares the time with reading the weights.
    progress = _SharedProgress(model, "compiling and loading weights", parts=2)
    compiler = ThreadPoolExecutor(1, "compiler")
    try:
        compiling = compiler.submit(programs.compile, progress.part(0))
        params = _put_on_device(source, dtype, progress.part(1))
        compiling.result()
    finally:
        compiler.shutdown(wait=False)  # bad weights are told at once, not after compiling
    model.at("warming up")
    runner = JaxRunner(programs, params)
    runner.warm_up()
    return LoadedModel(
        name=settings.model_name or config.name,
        tokenizer=tokenizer,
        engine=_start(runner, _limits(settings, context_length, CHUNKS[-1]), on_death),
        device=_describe(device),
        load_s=time.monotonic() - began,
        compilations=compilations,
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


class _SharedProgress:
    """One stage made of parts that go on side by side, all of the same weight."""

    def __init__(self, model: ServedModel, stage: str, *, parts: int) -> None:
        self._model, self._stage = model, stage
        self._done = [0.0] * parts

    def part(self, index: int) -> Callable[[float], None]:
        """What one part reports its share to."""

        def report(done: float) -> None:
            self._done[index] = done
            self._model.at(self._stage, sum(self._done) / len(self._done))

        return report


def _open(settings: Settings) -> WeightSource:
    path = settings.model_checkpoint or demo_checkpoint(settings.cache_dir)
    if path.is_dir():
        return OrbaxWeights(path)
    if path.is_file():
        return GgufWeights(path)
    raise ModelLoadError(f"MODEL_CHECKPOINT {path}: no such file or directory")


def _tokenizer(settings: Settings, source: WeightSource) -> Tokenizer:
    """The tokenizer that the settings name, else the one that came with the weights."""
    if settings.model_tokenizer is not None:
        path = settings.model_tokenizer
    elif isinstance(source, GgufWeights):
        return Tokenizer(model_from_pieces(*source.tokenizer_pieces))
    else:
        beside = [source.path / "tokenizer.model", source.path.parent / "tokenizer.model"]
        found = [path for path in beside if path.is_file()]
        if not found:
            raise ModelLoadError(
                f"{source.path} brings no tokenizer: set MODEL_TOKENIZER to its tokenizer.model"
            )
        path = found[0]
    try:
        return Tokenizer(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"MODEL_TOKENIZER {path}: {error.strerror}") from None
    except ModelLoadError as error:
        raise ModelLoadError(f"MODEL_TOKENIZER {path}: {error}") from None


def _use_compile_cache(path: Path) -> None:
    """Keep compiled programs between starts. Whoever can write there can run code as us."""
    import jax

    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = path.stat()
    except OSError as error:
        raise ModelLoadError(f"--cache-dir: {error}") from None
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise ModelLoadError(
            f"{path}: others may write there, and could so run code here; "
            "make it yours alone (chmod 700) or set --cache-dir"
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _dtype(name: str, platform: str) -> "DTypeLike":
    import jax.numpy as jnp

    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def _put_on_device(
    source: WeightSource, dtype: "DTypeLike", progress: Callable[[float], None]
) -> "Params":
    """The parameter tree on the device; one leaf at a time, so that the host holds only that."""
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from gemma_server.model.transformer import abstract_params

    abstract = flatten_dict(abstract_params(source.config, dtype), sep="/")
    leaves = {
        path: jax.device_put(array, may_alias=True).block_until_ready()
        for path, array in load_leaves(source, abstract, progress)
    }
    params: Params = unflatten_dict(leaves, sep="/")
    return params


def _describe(device: object) -> str:
    platform, kind = getattr(device, "platform", ""), getattr(device, "device_kind", "")
    return "CPU" if platform == "cpu" else f"{platform.upper()} {kind}".strip()


def _limits(settings: Settings, context_length: int, chunk: int) -> Limits:
    return Limits(
        slots=settings.slots,
        context_length=context_length,
        chunk=chunk,
        max_queue=settings.max_queue,
        max_queue_tokens=settings.max_queue_tokens,
    )


def _start(runner: Runner, limits: Limits, on_death: OnDeath) -> Engine:
    engine = Engine(runner, Scheduler(limits), on_death)
    engine.start()
    return engine
