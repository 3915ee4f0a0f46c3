"""What the docs say exists, exists; what exists, the docs say. Settings: test_settings.py."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_server.api.operations import OPERATIONS
from gemma_server.model.presets import EMBEDDERS, RELEASED
from gemma_server.serving.loader import load_model
from gemma_server.serving.models import Models
from gemma_server.serving.version import ServableVersion
from gemma_server.settings import load_settings
from gemma_server.web.app import make_app
from gemma_server.weights.source import OWN_TABLE

ROOT = Path(__file__).parent.parent
MODELS = (ROOT / "docs" / "models.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
FRAMES = (ROOT / "docs" / "frames.md").read_text()
SETTINGS = load_settings(fake=True)
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "benchmarks").glob("*.md"),
    *(ROOT / "examples").glob("*/README.md"),
    ROOT / "clients" / "go" / "README.md",
]


def test_every_route_is_documented() -> None:
    routes = make_app(Models(), SETTINGS).url_map.iter_rules()
    for route in routes:
        for method in (route.methods or set()) - {"HEAD", "OPTIONS"}:
            assert f"{method} {route.rule}" in API


def test_every_operation_among_frames_is_documented() -> None:
    for operation in OPERATIONS:
        if operation.frame is not None:
            assert f"`{operation.frame}`" in FRAMES, operation.frame


def test_the_documented_metrics_are_the_exported_ones() -> None:
    models = Models()
    models.registry.adopt(load_model(SETTINGS, ServableVersion("fake"), lambda error: None))
    client = make_app(models, SETTINGS).test_client()
    client.post("/prompt", json={"prompt": "a"})
    text = client.get("/metrics").text
    exported = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    assert exported == set(re.findall(r"`(gemma_\w+)`", API))


def test_the_table_of_models_has_every_released_one_with_what_it_needs() -> None:
    rows = re.findall(r"^\| (\w*gemma-[\w-]+) \| (.+) \|$", MODELS, re.MULTILINE)
    assert [name for name, _ in rows] == [row.name for row in RELEASED]
    for row, (_, cells) in zip(RELEASED, rows, strict=True):
        pieces = 262_144 if row.qk_norm else 256_000  # of the tokenizer: padding is not loaded
        config = replace(row, vocab=pieces).config()
        mapped = math.prod(config.leaf_shapes.get(OWN_TABLE, (0,)))
        weights, cached = config.parameters - mapped, config.cached_numbers_per_token
        cache = cached * SETTINGS.slots * min(SETTINGS.context_length, row.context_length)
        sizes = [weights * (1 + 2 / 32), 2 * weights, 4 * weights, 2 * cache, 4 * cache]
        expected = [*(f"{size / 1e9:.1f}" for size in sizes), f"{row.context_length:,}"]
        assert cells.split(" | ")[:6] == expected, row.name


def test_the_table_of_models_that_embed_says_what_they_need() -> None:
    rows = re.findall(r"^\| `(embeddinggemma-\w+)`.*? \| (\d.+) \|$", MODELS, re.MULTILINE)
    assert [name for name, _ in rows] == [row.name for row in EMBEDDERS]
    for row, (_, cells) in zip(EMBEDDERS, rows, strict=True):
        config = row.config()
        sizes = (f"{config.parameters * size / 1e9:.1f}" for size in (1 + 2 / 32, 2, 4))
        assert cells.split(" | ")[:4] == [*sizes, str(config.embedding_width)], row.name
        assert cells.split(" | ")[5].startswith(f"{row.context_length:,}")


def test_every_benchmark_named_in_their_readme_exists_and_every_one_is_named() -> None:
    folder = ROOT / "benchmarks"
    commands = {path.stem for path in folder.glob("*.py") if '"__main__"' in path.read_text()}
    named = re.findall(r"benchmarks\.(\w+)", (folder / "README.md").read_text())
    started_by_others = {"llama", "hugging_face", "gpu_library"}
    assert commands - started_by_others == set(named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_file_named_in_the_docs_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)  # Go has generics
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:gemma_server|tests|scripts|docs|benchmarks)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
