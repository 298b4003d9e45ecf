"""What fine-tuning is asked to do: frozen values with a digest. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from histostore.specs import SpecBase, require, settle_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentSpec(SpecBase):
    """How training tiles are varied; 0 (or False) switches a part off."""

    symmetries: bool = True
    """One of the eight orientations of the square, each as likely."""
    brightness: float = 0.1
    """Colours times a factor in 1 ± this."""
    contrast: float = 0.1
    """Distance from the tile's mean grey times a factor in 1 ± this."""
    saturation: float = 0.1
    """Distance of each pixel from its own grey times a factor in 1 ± this."""
    hue: float = 0.02
    """Turn of the colour circle, at most this share of it."""
    blur: float = 1.0
    """Largest sigma of a Gaussian blur, in pixels of the stored tile."""
    blur_share: float = 0.2
    """Share of the tiles that are blurred."""

    def __post_init__(self) -> None:
        settle_numbers(self)
        for name in ("brightness", "contrast", "saturation", "blur_share"):
            require(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}, outside 0-1")
        require(0 <= self.hue <= 0.5, f"hue is {self.hue}, outside 0-0.5")
        require(0 <= self.blur <= 10, f"blur is {self.blur} px, outside 0-10")

    @classmethod
    def none(cls) -> AugmentSpec:
        """Return the spec that leaves tiles as they are."""
        return cls(symmetries=False, brightness=0, contrast=0, saturation=0, hue=0, blur=0, blur_share=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSpec(SpecBase):
    """One fine-tuning run: which backbone, how much of it, on what split, and how."""

    backbone: str
    """As `load_backbone` takes it."""
    blocks: int | Literal["all"] = 1
    """How many of the last blocks learn (a residual or transformer block each); the rest is frozen."""
    hidden: tuple[int, ...] = ()
    """Widths of hidden layers between embedding and output; none is a linear head."""
    task: Literal["auto", "classes", "values"] = "auto"
    """What targets are: ``auto`` takes numbers for values and all else for classes."""
    class_weight: Literal["none", "balanced"] = "none"
    """``balanced``: rows weigh inversely to how often their class is met in training."""
    missing: Literal["refuse", "leave-out"] = "refuse"
    """Rows without a target: an error, or left out and counted."""
    by: str = "patient"
    """Obs column whose values are never on both sides of the validation split."""
    folds: int = 5
    """One of so many folds of groups is held out for validation (fewer where there are fewer groups)."""
    test: tuple[str, ...] = ()
    """Values of `by` that are kept for testing: their rows are not read at all."""
    allow_same_patient: bool = False
    """Permit the same patient in training and validation (a split by slide): said in the record."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    batch_norm: Literal["train", "frozen"] = "train"
    """Statistics of the learning blocks follow the batches, or stay. Those of frozen blocks always stay."""
    batch: int = 32
    max_epochs: int = 20
    patience: int = 5
    """Epochs without a better validation loss after which training stops; the best epoch is kept."""
    lr: float = 1e-4
    """Of the backbone."""
    head_lr: float = 1e-3
    weight_decay: float = 1e-2
    """Of weights; biases and norms have none."""
    seed: int = 0

    def __post_init__(self) -> None:
        settle_numbers(self)
        for name in ("hidden", "test"):
            one: object = getattr(self, name)
            if isinstance(one, str | int):  # one is a tuple of one
                object.__setattr__(self, name, (one,))
        blocks: object = self.blocks
        if blocks != "all":
            require(
                isinstance(blocks, int) and blocks >= 1,
                f"blocks is {self.blocks!r}: give 1 or more of the last blocks, or 'all' (for none, fit a head)",
            )
        for name in ("batch", "max_epochs", "patience"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: give 1 or more")
        require(self.folds >= 2, f"folds is {self.folds}: give 2 or more")
        widths: tuple[object, ...] = self.hidden
        whole = all(isinstance(w, int) and w >= 1 for w in widths)
        require(whole, f"hidden is {self.hidden}: widths are whole numbers, 1 or more")
        require(self.task in ("auto", "classes", "values"), f"task is {self.task!r}, not auto, classes or values")
        require(self.class_weight in ("none", "balanced"), f"class_weight is {self.class_weight!r}")
        require(self.missing in ("refuse", "leave-out"), f"missing is {self.missing!r}, not refuse or leave-out")
        require(self.batch_norm in ("train", "frozen"), f"batch_norm is {self.batch_norm!r}, not train or frozen")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            require(value > 0, f"{name} is {value}: give a positive rate")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: give 0 or more")
        require(self.seed >= 0, f"seed is {self.seed}: give 0 or more")
