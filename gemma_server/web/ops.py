"""Routes for whoever runs the server: is it alive, is it ready, what is it doing."""

from typing import Any

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from gemma_server.served import ServedModel
from gemma_server.web.metrics import Metrics


def blueprint(model: ServedModel, metrics: Metrics) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("ops", __name__)

    @routes.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz")
    def readyz() -> tuple[dict[str, Any], int, dict[str, str]]:
        status = model.status
        body = {
            "status": status,
            "stage": model.stage,
            "progress": model.progress,
            "model": model.name,
        }
        return (body, 200, {}) if status == "ready" else (body, 503, {"Retry-After": "2"})

    @routes.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    return routes
