"""Backbones of a user, for ``module:callable``."""

from __future__ import annotations

import torch

from histostore.backbones.testing_backbone import TestingBackbone


class Mean(torch.nn.Module):
    """Mean colour of sixteen blocks, scaled by one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) * self.scale


def network():
    return Mean()


def network_and_record():
    return Mean(), {"name": "mine", "input_px": 64, "mean": (0, 0, 0), "std": (1, 1, 1), "version": "2"}


def finished():
    return TestingBackbone()


def misspelt_record():
    return Mean(), {"input_pixels": 64}


def wrong_width():
    return Mean(), {"dim": 47}


def not_a_number():
    model = Mean()
    model.scale.data.fill_(float("nan"))
    return model, {}


def image_out():
    return torch.nn.Conv2d(3, 4, 3)


def text():
    return "a backbone"


def needs(argument):
    return argument


NUMBER = 7
