"""What the docs say exists, exists; what exists, the docs say. Settings: test_settings.py."""

import re
from pathlib import Path

import pytest

from gemma_server.build import load_model
from gemma_server.served import ServedModel
from gemma_server.settings import load_settings
from gemma_server.web.app import make_app

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "api.md").read_text()
SETTINGS = load_settings(fake=True)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "clients" / "go" / "README.md"]


def test_every_route_is_documented() -> None:
    routes = make_app(ServedModel("fake"), SETTINGS).url_map.iter_rules()
    for route in routes:
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}:
            assert f"{method} {route.rule}" in API


def test_the_documented_metrics_are_the_exported_ones() -> None:
    model = ServedModel("fake")
    load_model(SETTINGS, model, lambda error: None)
    client = make_app(model, SETTINGS).test_client()
    client.post("/prompt", json={"prompt": "a"})
    text = client.get("/metrics").text
    exported = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    assert exported == set(re.findall(r"`(gemma_\w+)`", API))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_file_named_in_the_docs_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:gemma_server|tests|scripts|docs|benchmarks)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
