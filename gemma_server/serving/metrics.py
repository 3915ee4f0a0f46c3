"""The server's metrics, in Prometheus' text format."""

from collections.abc import Callable, Iterable
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gemma_server.engine.request import Timings
from gemma_server.serving.served_model import ServedModel
from gemma_server.serving.version import ServableVersion

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that nobody reads

Reason = Literal["expired", "evicted"]  # why a model leaves memory

_VERSION = ("model", "version")  # labels of what a version has
_GAUGES = (
    ("gemma_slots", "Slots in all"),
    ("gemma_slots_busy", "Slots at work"),
    ("gemma_queue_requests", "Requests waiting for a slot"),
)
_COUNTERS = (
    ("gemma_steps", "Device steps"),
    ("gemma_tokens_drawn", "Tokens sampled"),
    ("gemma_prompt_cache_queries", "Prompts that could begin with what is cached"),
    ("gemma_prompt_cache_hits", "Those that did"),
    ("gemma_prompt_cache_tokens", "Prompt tokens that were cached, and not read again"),
    ("gemma_compilations", "Programs compiled since the start"),
)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one app, and what its versions say on each scrape."""

    def __init__(
        self, models: Callable[[], Iterable[ServedModel]], is_ready: Callable[[], bool]
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ModelMetrics(models, is_ready))
        self._loads = Counter(
            "gemma_model_loads", "Versions loaded", ["model", "result"], registry=self._registry
        )
        self._load_s = Histogram(
            "gemma_model_load_seconds",
            "From the start of loading a version until it takes requests",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._dismissals = Counter(
            "gemma_model_dismissals",
            "Times that a model left memory because nobody asked for it, or another needed it",
            ["model", "reason"],
            registry=self._registry,
        )
        self._poll_failures = Counter(
            "gemma_source_poll_failures",
            "Times that it could not be told which versions are wanted",
            registry=self._registry,
        )
        self._requests = Counter(
            "gemma_requests",
            "HTTP requests answered",
            ["route", "status"],
            registry=self._registry,
        )
        self._frames = Counter(
            "gemma_frames",
            "Requests and raw frames answered",
            ["op", "status"],
            registry=self._registry,
        )
        self._rejected = Counter(
            "gemma_rejected",
            "Requests for a model that were refused for want of room or time",
            ["reason"],
            registry=self._registry,
        )
        self._degraded = Counter(
            "gemma_degraded",
            "Requests whose answers were cut short because the queue was filling",
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            "gemma_prompt_tokens", "Prompt tokens of completed answers", registry=self._registry
        )
        self._completion_tokens = Counter(
            "gemma_completion_tokens",
            "Tokens sampled for completed answers",
            registry=self._registry,
        )
        self._first_token = Histogram(
            "gemma_time_to_first_token_seconds",
            "From submission to the first token",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._duration = Histogram(
            "gemma_request_seconds",
            "From submission to the last token",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def answered(self, route: str, status: int) -> None:
        """Count one HTTP answer."""
        self._requests.labels(route, str(status)).inc()

    def answered_frame(self, op: str, status: int) -> None:
        """Count one answer over frames, by the status that it would have in HTTP."""
        self._frames.labels(op, str(status)).inc()

    def rejected(self, reason: str) -> None:
        """Count one request that was not taken."""
        self._rejected.labels(reason).inc()

    def degraded(self) -> None:
        """Count one request whose answers are cut short."""
        self._degraded.inc()

    def completed(self, prompt_tokens: int, completion_tokens: int, timings: Timings) -> None:
        """Count one finished generation."""
        first_token_s = timings.queue_s + timings.prefill_s
        self._prompt_tokens.inc(prompt_tokens)
        self._completion_tokens.inc(completion_tokens)
        self._first_token.observe(first_token_s)
        self._duration.observe(first_token_s + timings.decode_s)

    def loaded(self, model: str, seconds: float) -> None:
        """Count one version that takes requests."""
        self._loads.labels(model, "available").inc()
        self._load_s.observe(seconds)

    def failed(self, model: str) -> None:
        """Count one version that failed, in loading or later."""
        self._loads.labels(model, "failed").inc()

    def dismissed(self, model: str, reason: Reason) -> None:
        """Count one time that a model left memory."""
        self._dismissals.labels(model, reason).inc()

    def poll_failed(self) -> None:
        """Count one time that the source could not be read."""
        self._poll_failures.inc()

    def exposition(self) -> bytes:
        """All metrics, in the text format."""
        return generate_latest(self._registry)


class _ModelMetrics:
    """Reads the versions and their engines on each scrape."""

    def __init__(
        self, models: Callable[[], Iterable[ServedModel]], is_ready: Callable[[], bool]
    ) -> None:
        self._models, self._is_ready = models, is_ready

    def collect(self) -> Iterable[Metric]:
        ready = float(self._is_ready())
        yield GaugeMetricFamily("gemma_ready", "1 when requests are taken", value=ready)
        yield from self._states()
        yield from self._engines()

    def _states(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "gemma_model_state",
            "1 for the state of each version",
            labels=(*_VERSION, "state"),
        )
        leases = GaugeMetricFamily(
            "gemma_model_leases", "Requests that hold a version", labels=_VERSION
        )
        memory = GaugeMetricFamily(
            "gemma_model_memory_bytes", "Memory booked for a version", labels=_VERSION
        )
        waiting = GaugeMetricFamily(
            "gemma_model_waiting", "Requests that wait for a model to load", labels=("model",)
        )
        for model in self._models():
            waiting.add_metric([model.public_name], model.waiting)
        for version in self._versions():
            labels = [version.public_name, str(version.number)]
            states.add_metric([*labels, version.state.value], 1)
            leases.add_metric(labels, version.leases)
            memory.add_metric(labels, version.booked_bytes)
        yield from (states, leases, memory, waiting)

    def _versions(self) -> list[ServableVersion]:
        return [version for model in self._models() for version in list(model.versions.values())]

    def _engines(self) -> Iterable[Metric]:
        gauges = [GaugeMetricFamily(*of, labels=_VERSION) for of in _GAUGES]
        counters = [CounterMetricFamily(*of, labels=_VERSION) for of in _COUNTERS]
        for version in self._versions():
            if (loaded := version.loaded) is None:
                continue
            stats, labels = loaded.worker.stats(), [version.public_name, str(version.number)]
            for gauge, value in zip(gauges, (stats.slots, stats.active, stats.queued), strict=True):
                gauge.add_metric(labels, value)
            totals = (
                stats.steps,
                stats.tokens_sampled,
                stats.prompt_cache_queries,
                stats.prompt_cache_hits,
                stats.prompt_cache_tokens,
                loaded.compilations.programs,
            )
            for counter, total in zip(counters, totals, strict=True):
                counter.add_metric(labels, total)
        yield from (*gauges, *counters)
