"""Serve a trained image classifier over frames: a raw frame has an image, its answer the class.

    python serve.py --frames /tmp/images.frames [--model DIRECTORY] [--port 20201]

The worker and the framed socket are gemma-server's; this file says what a frame means, and how the
model is loaded. On the port are /healthz and /readyz.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.app.wsgiapp import run

from gemma_server.api.caller import Caller
from gemma_server.errors import NotReady
from gemma_server.frames.codec import FINISHED
from gemma_server.frames.service import Op, Part
from gemma_server.settings import Settings, load_settings

if TYPE_CHECKING:
    from classifier import Classifier

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Loaded:
    """What the ready line tells."""

    name: str
    device: str
    load_s: float


class HostedClassifier:
    """A `Hosted` around one classifier, and the `Service` of its frames."""

    example: str | None = None

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.service = settings, self
        self.ops: Mapping[str, Op] = {"ready": self._ready}
        self._folder = folder
        self._classifier: Classifier | None = None
        self._draining = False

    @property
    def status(self) -> str:
        """As a Gemma model has it."""
        if self._draining:
            return "draining"
        return "loading" if self._classifier is None else "ready"

    def load(self, on_death: Callable[[BaseException], None]) -> Loaded:
        """Read and compile the network.

        Raises:
            ModelLoadError: the folder has none.
        """
        began = time.monotonic()
        # jax starts threads of its own, so not before the worker has forked.
        import jax

        from classifier import Classifier

        self._classifier = Classifier(self._folder)
        device = jax.devices()[0].platform
        return Loaded("image-classifier", device, time.monotonic() - began)

    def raw(self, body: bytes, caller: Caller) -> bytes:
        """The class of an image.

        Raises:
            InvalidRequest, NotReady: there is none.
        """
        if self._draining or self._classifier is None:
            raise NotReady(self.status, f"the classifier is {self.status}", retry_after_s=1)
        return self._classifier(body)

    def answered(self, op: str, status: int) -> None:
        """There are no metrics here to count it."""

    def _ready(self, fields: dict[str, Any], caller: Caller) -> Iterator[Part]:
        yield FINISHED, {"status": self.status, "model": "image-classifier"}

    def drain(self) -> None:
        """Refuse new images."""
        self._draining = True

    def stop(self) -> None:
        """Nothing runs for long."""


def create_app() -> Flask:
    """The HTTP side, which a worker of gunicorn hosts."""
    app = Flask(__name__, static_folder=None)
    hosted = HostedClassifier(load_settings(), Path(os.environ["CLASSIFIER_MODEL"]))
    app.extensions["hosted"] = hosted

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> tuple[dict[str, str], int]:
        return {"status": hosted.status}, 200 if hosted.status == "ready" else 503

    return app


def main() -> None:
    """Start gunicorn as gemma-server's command does."""
    parser = argparse.ArgumentParser(prog="serve.py", description="an image classifier over frames")
    parser.add_argument("--frames", required=True, help="the Unix socket for frames")
    parser.add_argument("--model", default=HERE / "trained", help="what train.py wrote")
    parser.add_argument("--port", default="20201", help="for /healthz and /readyz (20201)")
    arguments = parser.parse_args()
    os.environ["GEMMA_FRAMES"] = str(Path(arguments.frames).absolute())
    os.environ["GEMMA_PORT"] = arguments.port
    os.environ["CLASSIFIER_MODEL"] = str(Path(arguments.model).absolute())
    sys.argv = [
        "serve.py",
        "-c",
        "python:gemma_server.server.gunicorn_conf",
        f"--pythonpath={HERE}",
    ]
    sys.argv.append("serve:create_app()")
    run()


if __name__ == "__main__":
    main()
