"""The laws of docs/architecture.md, read from the code: who may import whom, and when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gemma_server

ROOT = Path(gemma_server.__file__).parent

# What HTTP and frames carry.
CARRIED = {"api", "engine", "text", "settings", "served", "generation", "metrics"}
# Everyone may use errors. "engine" does not stand for the runner, which imports jax.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "settings": set(),
    "text": {"text"},
    "model": {"model"},
    "native": set(),
    "weights": {"weights", "model.config"},
    "engine": {"engine"},
    "engine.fake": {"engine", "text"},
    "engine.runner": {"engine", "model"},
    "engine.operands": {"engine", "model"},
    "generation": {"engine", "text"},
    "served": {"engine", "text"},
    "figures": set(),
    "bench": {"engine", "served", "figures"},
    "metrics": {"served", "generation"},
    "api": {"api", "engine", "text", "served", "generation", "metrics"},
    "web": {"web", "connection", *CARRIED},
    "transport": {"transport", *CARRIED},
    "sidecar": {"build", "engine", "metrics", "served", "settings", "startup", "transport"},
    "startup": {"console", "served", "settings", "sidecar"},
    "checkpoint": {"weights", "text", "model.config"},
    "inspection": {"checkpoint", "model.config", "settings"},
    "conversion": {"checkpoint", "weights", "model"},
    "build": {
        "checkpoint",
        "weights",
        "engine",
        "engine.runner",
        "text",
        "settings",
        "model",
        "native",
        "served",
    },
    "connection": set(),
    "console": set(),
    "heads": set(),
    "http_worker": {"api", "connection", "heads"},
    "worker": {
        "console",
        "http_worker",
        "metrics",
        "served",
        "settings",
        "sidecar",
        "startup",
        "transport",
        "web",
    },
    "gunicorn_conf": {"console", "worker", "settings"},
    "cli": {
        "bench",
        "build",
        "checkpoint",
        "conversion",
        "inspection",
        "startup",
        "served",
        "generation",
        "engine",
        "settings",
        "text",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
JAX_ALLOWED = (
    "model",
    "native",
    "engine.runner",
    "engine.operands",
    "engine.executables",
)
JAX_ALLOWED_WITHIN_FUNCTIONS = ("bench", "build", "conversion", "engine.compilations")


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def law_of(module: str) -> set[str]:
    for name in (module, module.partition(".")[0]):
        if name in MAY_IMPORT:
            return MAY_IMPORT[name]
    raise AssertionError(f"no law for {module}: add it to the table and to docs/architecture.md")


def covers(allowed: str, module: str) -> bool:
    if module == "engine.runner" and allowed == "engine":
        return False
    return module == allowed or module.startswith(allowed + ".")


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_what_its_law_allows(module: str) -> None:
    law = law_of(module) | {"errors"}
    for name in imports_of(modules()[module]):
        if name.startswith("gemma_server."):
            target = name.removeprefix("gemma_server.")
            assert any(covers(allowed, target) for allowed in law), f"{module} imports {target}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_jax_is_imported_only_where_the_law_says(module: str) -> None:
    def jax_in(names: set[str]) -> bool:
        return any(name.split(".")[0] in ("jax", "flax", "orbax") for name in names)

    path = modules()[module]
    if any(covers(allowed, module) for allowed in JAX_ALLOWED):
        return
    assert not jax_in(imports_of(path, top_level_only=True))
    if module not in JAX_ALLOWED_WITHIN_FUNCTIONS:
        assert not jax_in(imports_of(path))


def test_there_is_no_cycle() -> None:
    graph = {
        module: {
            name.removeprefix("gemma_server.")
            for name in imports_of(path)
            if name.startswith("gemma_server.")
        }
        for module, path in modules().items()
    }
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
        "import gemma_server.cli",
        "import gemma_server.gunicorn_conf",
        "import gemma_server.build",
        "from gemma_server.web.app import make_app\n"
        "from gemma_server.metrics import Metrics\n"
        "from gemma_server.served import ServedModel\n"
        "from gemma_server.settings import load_settings\n"
        "from gemma_server.build import load_model\n"
        "settings = load_settings(fake=True)\n"
        "model = ServedModel('fake')\n"
        "load_model(settings, model, lambda error: None)\n"
        "client = make_app(model, settings, Metrics(model)).test_client()\n"
        "assert client.post('/prompt', json={'prompt': 'a'}).json['response'] == 'a'",
    ],
    ids=["package", "cli", "gunicorn master", "build", "web app on the fake engine"],
)
def test_jax_is_not_loaded(code: str) -> None:
    """A process that forks must not have jax in it, and what needs no device starts fast."""
    check = "\nimport sys; assert not {'jax', 'jaxlib', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True, timeout=60)
