"""Counts what XLA compiles, so that "nothing compiles after ready" can be watched."""

from dataclasses import dataclass

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compilations:
    """What was compiled since `watch`; none without a device."""

    programs: int = 0
    seconds: float = 0.0

    def watch(self) -> "Compilations":
        """Begin to count."""
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            self.programs += 1
            self.seconds += duration_secs
