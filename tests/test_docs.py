"""What the README shows runs as it is written."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import anndata
import pytest

import histostore
import histostore as hs
from histostore.cli.main import main
from histostore.cli.parser import COMMANDS
from histostore.testing.cohort import write_cohort
from histostore.view import View

README = (Path(__file__).parent.parent / "README.md").read_text()
RENAMED = {"A1": "C2", "A2": "C3", "B1": "D2", "B2": "D3"}


NAMES = {"hs": hs, "histostore": histostore, "store": hs.Store, "view": View, "Path": Path, "print": print}
"""What the names of the table of commands stand for: a value for its class."""
RETURNED = {"AnnData": anndata.AnnData}
CODE = re.compile(r"`([^`]+)`")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sheet of synthetic slides under the README's names."""
    root = tmp_path_factory.mktemp("readme")
    cohort = write_cohort(root, n_patients=2, slides_per_patient=2, spots=60, genes=120, px=1500)
    text = cohort.sheet.read_text()
    for ours, theirs in RENAMED.items():
        text = re.sub(rf"^{ours},", f"{theirs},", text, flags=re.MULTILINE)
    (root / "samples.csv").write_text(text)
    (root / "clinical.csv").write_text("patient,grade\nA,2\nB,3\n")
    (root / "stores").mkdir()
    return root


@pytest.fixture
def spot(folder: Path) -> str:
    sheet = (
        folder / "A1.spots.tsv" if (folder / "A1.spots.tsv").exists() else next(folder.rglob("A1*spots*"))
    ).read_text()
    x, y = sheet.splitlines()[1].split("\t")[:2]
    return f"{round(float(x))}x{round(float(y))}"


def test_the_commands_of_the_readme_run_and_its_python_on_the_store_they_made(
    folder: Path, spot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for line in block("sh").splitlines():
        for command in line.split(" ; "):
            words = [w.replace("25x13", spot) for w in shlex.split(command, comments=True)]
            assert words[0] == "histostore"
            assert main(words[1:]) == 0, command
    assert (folder / "her2st.h5ad").exists()
    assert (folder / "hits.png").exists()
    assert (folder / "fit.html").exists()
    code = block("python").replace("25x13", spot)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["hits"].table) == 20
    assert isinstance(names["store"], hs.Store)
    assert "connectivities" in names["adata"].obsp


def spellings() -> dict[str, list[str]]:
    """Return the Python of each command, as the README's table says it."""
    table = README.split("| command | Python |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [line.strip("|").split("|") for line in table]
    pairs = [(of, spelt) for line in cells for of, spelt in (line[:2], line[2:]) if of.strip()]
    return {CODE.findall(of)[0]: CODE.findall(spelt) for of, spelt in pairs}


def meant(node: ast.expr) -> Any:
    """Return what an expression of the table names, every call in it checked against its function's signature."""
    match node:
        case ast.Name(id=name):
            return NAMES[name]
        case ast.Attribute(value=of, attr=name):
            return getattr(meant(of), name)
        case ast.Call(func=func, args=args, keywords=keywords):
            called = meant(func)
            inner = [a for a in (*args, *(k.value for k in keywords)) if isinstance(a, ast.Call)]
            assert all(meant(a) is not None for a in inner)
            if called in (print, Path):
                return called
            of = meant(func.value) if isinstance(func, ast.Attribute) else None
            itself = [None] if inspect.isfunction(called) and inspect.isclass(of) else []
            signature = inspect.signature(called)
            signature.bind(*itself, *args, **{str(k.arg): k.value for k in keywords})
            return called if inspect.isclass(called) else RETURNED.get(signature.return_annotation, called)
    raise AssertionError(ast.unparse(node))


def test_the_readme_has_python_for_every_command_and_no_other() -> None:
    assert set(spellings()) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_python_of_a_command_is_there_and_takes_what_the_table_gives_it(command: str) -> None:
    spelt = spellings()[command]
    assert spelt
    for text in spelt:
        assert callable(meant(ast.parse(text, mode="eval").body)), text
