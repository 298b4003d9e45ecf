"""The table of models, and what is here of them, without torch or a network."""

from __future__ import annotations

import subprocess
import sys

import pytest

from histostore.backbones import availability, known
from histostore.backbones.catalog import find
from histostore.backbones.networks import torchvision_record
from histostore.ids import check_slug


def test_names_and_aliases_are_unique_slugs():
    names = [n for r in known() for n in (r.name, *r.aliases)]
    assert len(names) == len(set(names))
    assert all(check_slug(n, "backbone") == n == n.lower() for n in names)


def test_every_record_says_its_licence_and_where_it_comes_from():
    for record in known():
        assert record.licence, record.name
        assert record.name == "testing" or record.url.startswith("https://"), record.name
        assert len(record.mean) == len(record.std) == 3, record.name


def test_the_pathology_models_are_there_and_admit_that_nobody_ran_them_here():
    wanted = {"uni", "uni2-h", "virchow2", "h-optimus-0", "h-optimus-1", "prov-gigapath", "conch", "phikon-v2"}
    records = {r.name: r for r in known() if r.mpp}
    assert wanted <= set(records)
    assert all(not r.verified and "never loaded" in r.notes for r in records.values())
    assert all(r.gated for n, r in records.items() if n != "phikon-v2")


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet18", "densenet121", "inception_v3", "vit_b_16", "convnext_tiny", "mobilenet_v2"]
)
def test_the_table_agrees_with_torchvision(name):
    record = find(name)
    theirs = torchvision_record(record.arch.partition("/")[2])
    for field in ("input_px", "mean", "std", "interpolation", "arch", "file"):
        assert getattr(record, field) == getattr(theirs, field), field


def test_aliases_and_capitals_find_the_model():
    assert find("UNI2_h").name == find("uni2").name == "uni2-h"
    assert find("nobody") is None


def test_packaged_models_are_here():
    assert [availability(find(n)) for n in ("efficientnet_lite0", "mobilenet_v2", "testing")] == ["here"] * 3


def test_what_is_missing_is_named(bare_machine):
    assert availability(find("uni2-h")) == "gated: needs token"
    assert availability(find("phikon-v2")) == "needs download"
    assert availability(find("resnet50")) == "needs download"
    assert availability(find("conch")) == "needs package conch"


def test_a_token_a_cached_file_and_a_torch_file_are_seen(bare_machine):
    token = bare_machine / "hf" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_none\n", encoding="utf-8")
    assert availability(find("uni2-h")) == "needs download"
    snapshot = bare_machine / "hf" / "hub" / "models--MahmoodLab--UNI2-h" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    assert availability(find("uni2-h")) == "here"
    checkpoints = bare_machine / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "resnet50-11ad3fa6.pth").touch()
    assert availability(find("resnet50")) == "here"


def test_listing_models_imports_nothing_heavy():
    code = (
        "import sys, histostore.backbones as b; [b.availability(r) for r in b.known()];"
        "print([m for m in ('torch', 'timm', 'numpy', 'huggingface_hub', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
