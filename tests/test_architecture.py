"""The house: imports go one way, and what must be instant imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import histostore

ROOT = Path(histostore.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("_version", "errors", "ids", "units"),
    ("specs", "protocols", "tables", "progress", "where", "head_specs", "staged", "field_of_view", "cuda_flags"),
    ("schema",),
    ("store",),
    ("slides", "tiles", "io", "backbones", "heads", "index", "pl", "report", "genes", "fetch"),
    ("content", "inventory", "health"),
    ("part",),
    ("blocks", "opening", "row_filter", "embedding_rows"),
    ("view", "adata", "lazy"),
    ("cohort",),
    ("stages",),
    ("scale", "exchange"),
    ("face", "pp", "tl", "get"),
    ("recipes", "serve"),
    ("testing",),
    ("cli",),
)
"""From the bottom up. Parts of one layer do not import each other, but for those in `TOGETHER`."""

TOGETHER = {
    frozenset(pair)
    for pair in (
        ("ids", "errors"),
        ("units", "errors"),
        ("specs", "progress"),
        ("specs", "head_specs"),
        ("view", "adata"),
        ("view", "lazy"),
    )
}

FACADES = {"__init__", "__main__"}


def part_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else "__init__"


def imports_of(path: Path, *, at_run_time: bool) -> set[str]:
    """Return the histostore parts a module imports, type-only imports left out."""
    tree = ast.parse(path.read_text())
    if at_run_time:
        typed = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        for node in typed:
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "histostore":
                names = [f"histostore.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {part_of(n) for n in names if n.startswith("histostore")}
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        found.append((relative.parts[0].removesuffix(".py"), path))
    return found


def test_every_module_has_a_layer() -> None:
    known = {p for layer in LAYERS for p in layer} | FACADES
    assert {part for part, _ in modules()} <= known


@pytest.mark.parametrize(("part", "path"), [pytest.param(a, p, id=str(p.relative_to(ROOT))) for a, p in modules()])
def test_a_module_imports_only_from_below(part: str, path: Path) -> None:
    """Functions too: an import hidden in a function is an import."""
    if part in FACADES:
        return
    level = next(i for i, layer in enumerate(LAYERS) if part in layer)
    below = {p for layer in LAYERS[:level] for p in layer}
    for other in imports_of(path, at_run_time=True) - {part}:
        assert other in below or frozenset((part, other)) in TOGETHER or (part == "cli" and other == "__init__"), (
            f"{path.relative_to(ROOT)} (layer {part}) imports {other}"
        )


def test_no_module_is_a_bag() -> None:
    assert not [p for _, p in modules() if p.stem in ("utils", "helpers", "common_utils", "misc")]


@pytest.mark.parametrize("statement", ["import histostore", "import histostore.cli", "import histostore.store.store"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    heavy = ["numpy", "pandas", "scipy", "torch", "zarr", "anndata", "scanpy", "matplotlib", "dask", "rich", "pydantic"]
    code = f"{statement}; import sys; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
