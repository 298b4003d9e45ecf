"""Commands beside the main job: tuning a backbone, published systems, public data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"


def test_a_backbone_is_tuned_named_and_used(embedded, copy_of, cli):
    store = copy_of(embedded)
    options = ["--target", "region_annotations", "--save", "mine", "--by", "slide", "--leave-out-missing"]
    options += ["--set", "max_epochs=1", "--set", "blur=0", "--set", "batch=8", "--where", "slide == 'A1' or in_tissue"]
    told = cli("finetune", store, "--backbone", "efficientnet_lite0", *options, "--json")
    result = json.loads(told.out if hasattr(told, "out") else told.stdout)
    assert result["done"] == "written"
    again = cli("finetune", store, "--backbone", "efficientnet_lite0", *options)
    assert "already there" in again.stdout
    made = cli("embed", store, "--backbone", "mine", "--slides", "A1")
    assert "written" in made.stdout
    fitted = cli("fit", store, "--backbone", "mine", "--slides", "A1", "--genes", "top-mean:2",
                 "--split", "spatial-block:2:600", "--allow-same-patient")  # fmt: skip
    assert "the backbone was tuned on" in fitted.stdout


def test_a_pipeline_runs_from_the_command_line(embedded, copy_of, cli, tmp_path):
    store = copy_of(embedded)
    given = ["--set", "backbone=testing", "--set", "px=96", "--set", "genes=top-mean:5", "--set", "codec=slide"]
    told = cli("run", PIPELINES / "st_net.py", "--store", store, *given, "--name", "small", "--out", tmp_path)
    assert "pearson" in told.stdout
    listed = cli("runs", "--out", tmp_path, "--json")
    assert "small" in listed.stdout
    cli("run", PIPELINES / "st_net.py", "--store", store, "--set", "backbnoe=x", "--out", tmp_path, code=2)


def test_public_data_is_listed_with_its_licence(cli):
    assert "icence" in cli("fetch", "--list").stdout


@pytest.mark.parametrize(
    "wrong",
    [["--blocks", "none"], ["--set", "lrr=1"], ["--set", "lr=fast"], ["--set", "backbone=x"], ["--set", "blur=nan"]],
)
def test_bad_tuning_is_refused(embedded, copy_of, cli, wrong):
    store = copy_of(embedded)
    cli("finetune", store, "--backbone", "efficientnet_lite0", "--target", "region_annotations", "--save", "x",
        *wrong, code=2)  # fmt: skip
