"""A bounded folder of blocks that were read from afar: only of files that never change, shared by all processes.

A block is one file, its name the hash of what it is of, its bytes followed by their crc32. It is written beside its
place and renamed, so a reader finds it whole or not at all; one that is damaged is dropped and fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import UsageError

if TYPE_CHECKING:
    from histostore.store.files import Buffer

FOLDER = "HISTOSTORE_CACHE"
"""Where blocks are kept; ``~/.cache/histostore/objects`` by default."""
SIZE = "HISTOSTORE_CACHE_BYTES"
"""How many bytes of them; 0 keeps none."""
DEFAULT_BYTES = 2 << 30
BLOCK_BYTES = 256 << 10

_CRC = 4
_TOUCH_S = 60.0
"""A hit renews a block's age at most this often."""
_TEMPORARY = ".new-"
_STALE_S = 3600.0


class ReadCache:
    """Blocks of immutable files, least recently used first out.

    Parameters
    ----------
    folder
        Made on the first write, for this user alone.
    max_bytes
        Bound on all blocks together. Each process looks at the whole folder after every sixteenth part of it that it
        has written, and then removes down to seven eighths; beside `n` writing processes it may exceed the bound by
        (`n` - 2) sixteenths.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._unseen: int | None = None
        """Bytes written since the folder was last looked at; None before the first time."""
        self._broken = False

    @classmethod
    def from_environment(cls) -> ReadCache | None:
        """Return the cache that the environment asks for; None where its size is 0.

        Raises
        ------
        UsageError
            HISTOSTORE_CACHE_BYTES is not a number of bytes.
        """
        text = os.environ.get(SIZE, str(DEFAULT_BYTES))
        if not text.isascii() or not text.isdigit():
            raise UsageError(f"{SIZE} is {text!r}; give a whole number of bytes, 0 for no cache")
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        folder = Path(os.environ.get(FOLDER) or home / "histostore" / "objects").expanduser()
        return cls(folder, int(text)) if int(text) else None

    def get(self, name: str, block: int) -> bytes | None:
        """Return a block, or None."""
        path = self._path(name, block)
        try:
            data = path.read_bytes()
            if time.time() - path.stat().st_mtime > _TOUCH_S:
                os.utime(path)
        except OSError:
            data = b""
        found = data[:-_CRC]
        if len(data) >= _CRC and zlib.crc32(found).to_bytes(_CRC, "little") == data[-_CRC:]:
            self.hits += 1
            return found
        if data:
            self._drop(path)
        self.misses += 1
        return None

    def put(self, name: str, block: int, data: Buffer) -> None:
        """Keep a block. A folder that cannot be written is no error: it is said once, and nothing is kept."""
        if self._broken or len(data) + _CRC > self.max_bytes:
            return
        path = self._path(name, block)
        temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(6)}"
        try:
            self._make_room(len(data) + _CRC)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                file.write(data)
                file.write(zlib.crc32(data).to_bytes(_CRC, "little"))
            temporary.replace(path)
        except OSError as error:
            self._drop(temporary)
            self._broken = True
            said = (
                f"{self.folder}: nothing is kept here ({error.strerror}); reads go on without. Set {FOLDER} or {SIZE}"
            )
            warnings.warn(said, stacklevel=2)

    def _path(self, name: str, block: int) -> Path:
        digest = hashlib.sha256(f"{name}\n{block}".encode()).hexdigest()
        return self.folder / digest[:2] / digest[2:40]

    def _make_room(self, n_bytes: int) -> None:
        with self._lock:
            if self._unseen is None or self._unseen + n_bytes > self.max_bytes // 16:
                self._unseen = 0
                self._evict(n_bytes)
            self._unseen += n_bytes

    def _evict(self, n_bytes: int) -> None:
        blocks: list[tuple[float, int, Path]] = []
        if not self.folder.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                stat = path.stat()
                if path.name.startswith(_TEMPORARY):
                    if time.time() - stat.st_mtime > _STALE_S:
                        self._drop(path)
                    continue
                blocks.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in blocks) + n_bytes
        room = self.max_bytes - self.max_bytes // 8
        for _, size, path in sorted(blocks, key=lambda b: b[0]) if total > room else ():
            if total <= room:
                break
            self._drop(path)
            total -= size

    @staticmethod
    def _drop(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
