"""What the README shows runs as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import histostore as hs
from histostore.cli.main import main
from histostore.testing.cohort import write_cohort

README = (Path(__file__).parent.parent / "README.md").read_text()
RENAMED = {"A1": "C2", "A2": "C3", "B1": "D2", "B2": "D3"}


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
