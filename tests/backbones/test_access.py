"""A model that cannot be had says so in seconds, and says what to do."""

from __future__ import annotations

import time

import pytest

from histostore.backbones import load_backbone, preflight
from histostore.backbones.cache import reachable
from histostore.errors import MissingDependencyError, NotFoundError


@pytest.fixture
def quick():
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 5


@pytest.mark.usefixtures("bare_machine", "quick")
@pytest.mark.parametrize("ask", [preflight, load_backbone])
class TestWithoutANetwork:
    def test_a_gated_model_asks_for_its_licence_a_token_or_a_file(self, ask):
        with pytest.raises(MissingDependencyError) as caught:
            ask("uni2-h")
        text = str(caught.value)
        for part in ("no hub token", "https://huggingface.co/MahmoodLab/UNI2-h", "hf auth login", "checkpoint=PATH"):
            assert part in text
        assert "\n" not in text

    def test_a_token_without_a_network_does_not_help(self, ask, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        with pytest.raises(MissingDependencyError, match=r"http://127\.0\.0\.1:9 does not answer"):
            ask("virchow2")

    def test_an_open_model_says_that_the_hub_does_not_answer(self, ask):
        with pytest.raises(MissingDependencyError, match="does not answer"):
            ask("phikon-v2")

    def test_offline_mode_is_named(self, ask, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        with pytest.raises(MissingDependencyError, match="HF_HUB_OFFLINE is set"):
            ask("h-optimus-1")

    def test_a_model_whose_code_is_missing_names_the_package(self, ask):
        with pytest.raises(MissingDependencyError, match=r"needs the package conch: pip install git\+https"):
            ask("conch")

    def test_an_unknown_name_suggests_near_ones(self, ask):
        with pytest.raises(NotFoundError, match="did you mean 'uni2-h'"):
            ask("uni2h")


@pytest.mark.usefixtures("bare_machine")
def test_timm_weights_that_are_not_cached_fail_with_the_same_text():
    load_backbone("timm/resnet18@random:0")  # timm's import is not what is timed
    started = time.perf_counter()
    with pytest.raises(MissingDependencyError, match=r"file:PATH#timm/resnet18\.a1_in1k"):
        load_backbone("timm/resnet18.a1_in1k")
    assert time.perf_counter() - started < 5


@pytest.mark.usefixtures("bare_machine")
def test_torchvision_weights_behind_a_dead_proxy_name_the_cache_to_fill(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(MissingDependencyError, match=r"resnet50-11ad3fa6\.pth .* put it into .*checkpoints"):
        preflight("resnet50")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v2", "testing", "resnet50@random:1"])
def test_what_is_here_passes(bare_machine, name):
    preflight(name)


def test_a_host_that_does_not_exist_is_out_of_reach_in_time():
    started = time.perf_counter()
    assert not reachable("https://no-such-host.invalid", seconds=1)
    assert time.perf_counter() - started < 2
