"""The server's metrics, in Prometheus' text format."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gemma_server.engine.request import Timings
from gemma_server.serving.model import ServedModel

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that nobody reads

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one app, and gauges that are read from its model's engine on each scrape."""

    def __init__(self, model: ServedModel) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineMetrics(model))
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

    def completed(self, prompt_tokens: int, completion_tokens: int, timings: Timings) -> None:
        """Count one finished generation."""
        first_token_s = timings.queue_s + timings.prefill_s
        self._prompt_tokens.inc(prompt_tokens)
        self._completion_tokens.inc(completion_tokens)
        self._first_token.observe(first_token_s)
        self._duration.observe(first_token_s + timings.decode_s)

    def exposition(self) -> bytes:
        """All metrics, in the text format."""
        return generate_latest(self._registry)


class _EngineMetrics:
    """Reads the engine on each scrape."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def collect(self) -> Iterable[Metric]:
        ready = self._model.status == "ready"
        yield GaugeMetricFamily("gemma_ready", "1 when requests are taken", value=float(ready))
        loaded = self._model.loaded
        if loaded is None:
            return
        stats = loaded.worker.stats()
        yield GaugeMetricFamily("gemma_slots", "Slots in all", value=stats.slots)
        yield GaugeMetricFamily("gemma_slots_busy", "Slots at work", value=stats.active)
        yield GaugeMetricFamily(
            "gemma_queue_requests", "Requests waiting for a slot", value=stats.queued
        )
        yield CounterMetricFamily("gemma_steps", "Device steps", value=stats.steps)
        yield CounterMetricFamily(
            "gemma_tokens_drawn", "Tokens sampled", value=stats.tokens_sampled
        )
        yield CounterMetricFamily(
            "gemma_prompt_cache_queries",
            "Prompts that could begin with what is cached",
            value=stats.prompt_cache_queries,
        )
        yield CounterMetricFamily(
            "gemma_prompt_cache_hits", "Those that did", value=stats.prompt_cache_hits
        )
        yield CounterMetricFamily(
            "gemma_prompt_cache_tokens",
            "Prompt tokens that were cached, and not read again",
            value=stats.prompt_cache_tokens,
        )
        yield CounterMetricFamily(
            "gemma_compilations",
            "Programs compiled since the start",
            value=loaded.compilations.programs,
        )
