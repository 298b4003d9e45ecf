"""Can this model be had, and if not, what is there to do? Fails in seconds, with one clear text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.backbones.cache import hub_offline, hub_token, hub_url, reachable, torch_cache
from histostore.backbones.catalog import availability, local_file
from histostore.errors import MissingDependencyError

if TYPE_CHECKING:
    from histostore.backbones.records import ModelRecord

TORCHVISION_URL = "https://download.pytorch.org/models/"


def check_access(record: ModelRecord) -> None:
    """Raise `MissingDependencyError` where a model's weights are not here and cannot be fetched now.

    Nothing is downloaded: a cached file, a token, ``HF_HUB_OFFLINE`` and one connection of at most three seconds
    are looked at.
    """
    state = availability(record)
    if state == "here":
        return
    if state.startswith("needs package"):
        msg = f"backbone '{record.name}' needs the package {record.package}: {record.install}"
        raise MissingDependencyError(msg)
    obstacle = _obstacle(record)
    if obstacle:
        raise refused(record, obstacle)


def refused(record: ModelRecord, obstacle: str) -> MissingDependencyError:
    """Return the error for weights that cannot be fetched, with what to do about it."""
    steps = []
    if record.gated:
        steps.append(f"accept its licence ({record.licence}) at {record.url} and run `hf auth login`")
    if record.repository:
        name = record.arch if record.repo else record.name
        steps.append(f"fetch {record.file} where there is a network and give checkpoint=PATH (or file:PATH#{name})")
    else:
        steps.append(f"fetch {TORCHVISION_URL}{record.file} where there is a network and put it into {torch_cache()}")
    msg = f"backbone '{record.name}' is not on this machine and cannot be fetched: {obstacle}; {', or '.join(steps)}"
    return MissingDependencyError(msg)


def _obstacle(record: ModelRecord) -> str | None:
    if local_file(record):
        return None
    url = hub_url() if record.repository else TORCHVISION_URL
    if record.repository and hub_offline():
        return "HF_HUB_OFFLINE is set"
    if record.gated and not hub_token():
        return "it is gated and there is no hub token"
    return None if reachable(url) else f"{url} does not answer (no network?)"
