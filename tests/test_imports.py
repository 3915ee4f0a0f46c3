"""The laws of docs/architecture.md, read from the code: who may import whom, and when."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemma_server

ROOT = Path(gemma_server.__file__).parent

# Each line may import itself and the lines above it, and nothing below. Rooms on one line know
# nothing of each other. Those of the first two lines are modules, the others folders.
ORDER = (
    ("errors",),
    ("settings", "console", "private_directory", "duration"),
    ("text", "model", "native"),
    ("weights", "engine"),
    ("executor",),
    ("serving",),
    ("api",),
    ("web", "frames"),
    ("server",),
    ("cli",),
    ("__main__",),
    ("__init__",),
)
LINE = {room: index for index, rooms in enumerate(ORDER) for room in rooms}
WITH_JAX = ("model", "native", "executor")
FRAMEWORKS = {"jax", "jaxlib", "flax", "orbax"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; a package by its own name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """The modules that a file imports; `from a import b` names a.b where that is a module."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in inner if name.removeprefix("gemma_server.") in MODULES)


def ours(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = (name for name in imports_of(path) if name.startswith("gemma_server."))
    return {name.removeprefix("gemma_server.") for name in names}


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_rooms_above_its_own(module: str) -> None:
    room = room_of(module)
    for target in ours(MODULES[module]):
        other = room_of(target)
        assert other == room or LINE[other] < LINE[room], f"{module} imports {target}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_jax_is_imported_at_the_top_of_a_module_only_where_the_law_says(module: str) -> None:
    if room_of(module) in WITH_JAX:
        return
    names = imports_of(MODULES[module], top_level_only=True)
    assert not {name.partition(".")[0] for name in names} & FRAMEWORKS


def test_there_is_no_cycle() -> None:
    graph = {module: ours(path) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in graph.get(module, set()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    "code",
    [
        "import gemma_server",
        "import gemma_server.cli.main, gemma_server.cli.serve, gemma_server.cli.generate",
        "import gemma_server.server.gunicorn_conf",
        "import gemma_server.serving.loader",
        "from gemma_server.web.app import make_app\n"
        "from gemma_server.serving.models import Models\n"
        "from gemma_server.serving.version import ServableVersion\n"
        "from gemma_server.settings import load_settings\n"
        "from gemma_server.serving.loader import load_model\n"
        "settings = load_settings(fake=True)\n"
        "models = Models()\n"
        "models.registry.adopt(load_model(settings, ServableVersion('fake'), lambda error: None))\n"
        "client = make_app(models, settings).test_client()\n"
        "assert client.post('/prompt', json={'prompt': 'a'}).json['response'] == 'a'",
    ],
    ids=["package", "cli", "gunicorn master", "build", "web app on the fake engine"],
)
def test_jax_is_not_loaded(code: str) -> None:
    """A process that forks must not have jax in it, and what needs no device starts fast."""
    heavy = {"jax", "jaxlib", "flax", "orbax", "tensorstore", "safetensors", "gguf"}
    check = f"\nimport sys; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True, timeout=60)
