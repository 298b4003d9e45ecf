"""Where downloaded weights lie, and whether more could be had: plain paths, variables and one TCP connection."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

_YES = {"1", "ON", "YES", "TRUE"}
CONNECT_SECONDS = 3.0
"""Longest wait for a name server and a connection before a host counts as out of reach."""


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def hub_home() -> Path:
    """Return the hub's folder, as ``huggingface_hub`` chooses it."""
    return Path(os.environ.get("HF_HOME") or _cache_home() / "huggingface").expanduser()


def hub_cache() -> Path:
    """Return the folder of downloaded hub repositories."""
    return Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub").expanduser()


def torch_cache() -> Path:
    """Return the folder of files that torchvision downloads."""
    home = Path(os.environ.get("TORCH_HOME") or _cache_home() / "torch").expanduser()
    return home / "hub" / "checkpoints"


def cached_file(repository: str, file: str) -> Path | None:
    """Return a repository's file in the hub cache (the snapshot of ``main``, else any), or None."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        path = folder / "snapshots" / main.read_text(encoding="utf-8").strip() / file
        if path.is_file():
            return path
    return next((p for p in sorted((folder / "snapshots").glob(f"*/{file}")) if p.is_file()), None)


def hub_token() -> str | None:
    """Return the hub token that ``hf auth login`` or ``HF_TOKEN`` left, or None."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def hub_offline() -> bool:
    """Whether the environment forbids the hub (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    return any(os.environ.get(v, "").upper() in _YES for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_url() -> str:
    """Return the hub's address (``HF_ENDPOINT`` or the public one)."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def reachable(url: str, *, seconds: float = CONNECT_SECONDS) -> bool:
    """Whether the host of `url`, or the proxy in front of it, takes a connection in time."""
    scheme = urlsplit(url).scheme
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY")
    target = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}" if proxy else url)
    port = target.port or (443 if target.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout=seconds).close()
        except OSError:
            return
        answered.set()

    # a resolver may block far longer than any socket timeout, so it gets a thread that we stop waiting for
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
