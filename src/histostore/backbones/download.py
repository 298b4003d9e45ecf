"""Fetch one weights file and say where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from histostore.backbones.access import TORCHVISION_URL, check_access, refused
from histostore.backbones.cache import hub_token, torch_cache
from histostore.backbones.catalog import local_file
from histostore.errors import NotFoundError

if TYPE_CHECKING:
    from histostore.backbones.records import ModelRecord


def fetch(record: ModelRecord) -> Path:
    """Return the record's weights file, downloading it where it is not here.

    Raises
    ------
    MissingDependencyError
        When it cannot be had: no package, no network, no token or no permission.
    """
    if path := local_file(record):
        return path
    check_access(record)
    if record.repository:
        return _from_hub(record, record.repository)
    return _from_torchvision(record)


def _from_hub(record: ModelRecord, repository: str) -> Path:
    try:
        return Path(hf_hub_download(repository, str(record.file), token=hub_token(), etag_timeout=10))
    except GatedRepoError:
        raise refused(record, "your account has not been granted access") from None
    except LocalEntryNotFoundError:
        raise refused(record, "the hub does not answer") from None
    except EntryNotFoundError:
        msg = f"backbone '{record.name}': {repository} has no file {record.file}; give checkpoint=PATH to its weights"
        raise NotFoundError(msg) from None
    except HfHubHTTPError as error:
        raise refused(record, f"the hub says {str(error).splitlines()[0]}") from None


def _from_torchvision(record: ModelRecord) -> Path:
    path = torch_cache() / str(record.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name ends in the first digits of the sha256
    prefix = path.stem.rpartition("-")[2]
    try:
        torch.hub.download_url_to_file(TORCHVISION_URL + path.name, str(path), hash_prefix=prefix, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise refused(record, f"{TORCHVISION_URL}{path.name}: {error}") from None
    return path
