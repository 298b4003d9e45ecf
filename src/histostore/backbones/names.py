"""What does a backbone's name mean? Pure parsing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from histostore.errors import UsageError

_RANDOM = re.compile(r"(?P<model>.+)@random:(?P<seed>\d{1,9})")
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
TESTING = "testing"
STORE = "store:"
"""``store:NAME`` is the backbone NAME that was fine-tuned in the store at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedName:
    """A name taken apart: which model, from which file, with weights of which seed."""

    model: str
    checkpoint: Path | None = None
    seed: int | None = None
    delay_s: float = 0.0

    @property
    def is_own(self) -> bool:
        """Whether it is ``package.module:callable``."""
        return _OWN.fullmatch(self.model) is not None

    @property
    def library(self) -> str | None:
        """``timm`` or ``torchvision`` where the name says so."""
        library, slash, _ = self.model.partition("/")
        return library if slash and library in ("timm", "torchvision") else None


def parse(name: str) -> ParsedName:
    """Take a backbone's name apart.

    ``uni2-h`` · ``timm/resnet50.a1_in1k`` · ``torchvision/resnet50.IMAGENET1K_V2`` · any of these with
    ``@random:SEED`` · ``file:WEIGHTS#timm/resnet50`` · ``package.module:callable`` · ``testing?delay_ms=5``.
    """
    if name == TESTING or name.startswith(f"{TESTING}?"):
        return ParsedName(model=TESTING, delay_s=_delay(name))
    if name.startswith(STORE):
        msg = f"backbone '{name}' is kept in a store: load it from there with backbones.tuned.load_for(store, name)"
        raise UsageError(msg)
    if name.startswith("file:"):
        path, mark, model = name.removeprefix("file:").rpartition("#")
        if not (path and mark and model):
            msg = (
                f"backbone '{name}': name the weights and their architecture, like file:best.safetensors#timm/resnet50"
            )
            raise UsageError(msg)
        return ParsedName(model=model, checkpoint=Path(path).expanduser())
    if "@random" in name:
        match = _RANDOM.fullmatch(name)
        if match is None:
            msg = f"backbone '{name}': random weights need a seed, like timm/resnet18@random:0"
            raise UsageError(msg)
        return ParsedName(model=match["model"], seed=int(match["seed"]))
    return ParsedName(model=name)


def _delay(name: str) -> float:
    _, _, options = name.partition("?")
    if not options:
        return 0.0
    key, _, value = options.partition("=")
    try:
        if key == "delay_ms":
            return float(value) / 1000
    except ValueError:
        pass
    msg = f"backbone '{name}': the one option of testing is delay_ms, like testing?delay_ms=5"
    raise UsageError(msg)
