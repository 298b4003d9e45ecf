"""Bytes by key in an object store (``s3://``, ``gs://``, ``az://``): the operations of a folder, by requests.

Nothing is believed that was not answered: a write whose answer was lost is read back. What a sealed group consists of
never changes, so it may be kept in a local cache; nothing else is.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

import obstore

from histostore.errors import ConflictError, StorageError
from histostore.store.files import PARTIAL, Buffer, check_key
from histostore.store.object_address import Address, identity_of
from histostore.store.object_client import Limits, Requests, connect
from histostore.store.object_faults import Fault
from histostore.store.object_lease import LASTS_S, Lease
from histostore.store.object_ranges import coalesce, cut
from histostore.store.read_cache import BLOCK_BYTES, ReadCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from obstore import ObjectMeta

_CLOCK_S = 300.0
_DELETE_AT_ONCE = 1000
_PINNED = 100_000


def open_objects(uri: str) -> ObjectFiles:
    """Return the files at an address, asked for as the environment says. Nothing is sent yet.

    Raises
    ------
    UsageError
        It is no address, or a setting in the environment is not one.
    """
    address = Address.parse(uri)
    cache = ReadCache.from_environment()
    return ObjectFiles(connect(address), str(address), cache=cache, identity=identity_of(address))


class ObjectFiles:
    """A prefix of a bucket. Safe to share between threads; not across a fork.

    Parameters
    ----------
    client
        A store of obstore, of the prefix.
    uri
        Its address, which names no secret: it is shown in errors and written into reports.
    cache
        Keeps blocks of files that were pinned.
    identity
        What tells this prefix from those of the same name elsewhere; names blocks in the cache.
    """

    in_place = False

    def __init__(
        self, client: Any, uri: str, *, cache: ReadCache | None = None, identity: str = "", limits: Limits | None = None
    ) -> None:
        self.uri = uri
        self.cache = cache
        self._client = client
        self._identity = identity or uri
        self._requests = Requests(uri, limits or Limits())
        self._pinned: dict[str, int] = {}
        """Size of each object that never changes."""
        self._prefixes: dict[str, tuple[str, ...]] = {}
        self._pinning = threading.Lock()
        self._clock: tuple[float, float] | None = None
        """The server's time less our monotonic clock, and when that was found out."""

    def __repr__(self) -> str:
        return f"ObjectFiles({self.uri!r})"

    def __reduce__(self) -> tuple[Callable[[str], ObjectFiles], tuple[str]]:
        """Pickle the address alone: credentials stay in the environment of whoever opens it."""
        return open_objects, (self.uri,)

    def put(self, key: str, *parts: Buffer, sync: bool = True) -> None:
        """Write an object whole; it is durable once it is answered for, so `sync` changes nothing."""
        check_key(key, self.uri)
        limits = self._requests.limits
        data = b"".join(parts)
        many = len(data) > limits.single_bytes
        self._requests.get(
            key,
            lambda: obstore.put(self._client, key, data, use_multipart=many, chunk_size=limits.part_bytes),
        )

    def sync_tree(self, prefix: str) -> None:
        """Do nothing: what was answered for is durable, its name too."""

    def put_new(self, key: str, data: Buffer) -> bool:
        """Write an object only if there is none.

        Where the answer was lost, or says that there is one, it is read and compared: the same bytes are taken for
        ours. So `data` must hold something of the caller's own, as a manifest has its write id.
        """
        check_key(key, self.uri)
        data = bytes(data)
        fault: Fault | None = None
        for _ in range(self._requests.limits.tries):
            answer = self._requests.ask(
                lambda: obstore.put(self._client, key, data, mode="create", use_multipart=False)
            )
            if not isinstance(answer, Fault):
                return True
            fault = answer
            if not (fault.exists or fault.passing):
                raise self._requests.error(fault, key)
            found = self._get_if_any(key)
            if found is not None:
                return found == data
        what = fault.what if fault is not None else "no answer"
        raise StorageError(f"{self.uri}/{key}: it could not be written ({what}); run the same command again later")

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        check_key(key, self.uri)
        size, most = self._pinned.get(key), self._requests.limits.most_bytes
        if size is not None and self.cache is not None:
            return bytes(self._through_cache(key, size, [(0, size)])[0])

        def first() -> tuple[bytes, int]:
            answer = obstore.get(self._client, key, options={"range": (0, most)})
            return bytes(answer.bytes()), answer.meta["size"]

        found = self._requests.ask(first)
        if isinstance(found, Fault):
            if found.past_end:
                return b""
            raise self._requests.error(found, key)
        data, size = found
        if size <= len(data):
            return data
        rest = self._fetch(key, [(len(data), size - len(data))])[0]
        if len(data) + len(rest) != size:
            raise StorageError(f"{self.uri}/{key} changed while it was read; run the same command again")
        return b"".join((data, rest))

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """Return the bytes at each (offset, length), in that order: by few requests, some of them side by side."""
        check_key(key, self.uri)
        size = self._pinned.get(key)
        if self.cache is None or size is None:
            return self._fetch(key, ranges)
        return self._through_cache(key, size, ranges)

    def map(self, key: str) -> memoryview | None:
        """Return None: nothing here can be mapped."""

    def size(self, key: str) -> int | None:
        """Return an object's size, None where there is none."""
        check_key(key, self.uri)
        if (pinned := self._pinned.get(key)) is not None:
            return pinned
        about = self._head(key)
        return None if about is None else about["size"]

    def state(self, key: str) -> tuple[int, str] | None:
        """Return an object's size and its ETag (``""`` where the service has none), None where there is no object."""
        check_key(key, self.uri)
        about = self._head(key)
        return None if about is None else (about["size"], about["e_tag"] or "")

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below a prefix, sorted."""
        check_key(prefix, self.uri)
        found = self._requests.get(prefix, lambda: obstore.list_with_delimiter(self._client, prefix))
        names = [path.rpartition("/")[2] + "/" for path in found["common_prefixes"]]
        names += [about["path"].rpartition("/")[2] for about in found["objects"]]
        return sorted(name for name in names if not name.startswith(PARTIAL))

    def walk(self, prefix: str, *, recurse: bool = True) -> Iterator[tuple[str, int, float]]:
        """Yield (key, bytes, mtime) of every object below a prefix; mtimes are rounded up to whole seconds."""
        if prefix:
            check_key(prefix, self.uri)
        if not recurse:
            found = self._requests.get(prefix, lambda: obstore.list_with_delimiter(self._client, prefix or None))
            yield from (_listed(about) for about in found["objects"])
            return
        # a listing is one request to us: one that broke off is begun again, never gone on with
        yield from self._requests.get(
            prefix, lambda: [_listed(about) for page in obstore.list(self._client, prefix or None) for about in page]
        )

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""
        check_key(key, self.uri)
        self._delete([key])

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        keys = [key for key, _, _ in self.walk(prefix)]
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            self._delete(keys[start : start + _DELETE_AT_ONCE])

    def copy(self, source: str, target: str) -> bool:
        """Copy an object inside the bucket; return whether there was one."""
        check_key(source, self.uri)
        check_key(target, self.uri)
        found = self._requests.ask(lambda: obstore.copy(self._client, source, target))
        if isinstance(found, Fault):
            if found.absent:
                return False
            raise self._requests.error(found, target)
        if self.uri.startswith("az://"):
            self._await_copy(source, target)
        return True

    def lock(self, key: str) -> Lease | None:
        """Take a lease; None while another one lasts."""
        return None if self.locked(key) else Lease(self, key)

    def locked(self, key: str) -> bool:
        """Whether there is a lease that was renewed lately, by the server's clock."""
        check_key(key, self.uri)
        about = self._head(key)
        return about is not None and self.now() - about["last_modified"].timestamp() < LASTS_S

    def now(self) -> float:
        """Return the server's time, which mtimes are told in: that of an object just written.

        With credentials that may not write it is this machine's time.
        """
        monotonic = time.monotonic()
        if self._clock is None or monotonic - self._clock[1] > _CLOCK_S:
            key = f"{PARTIAL}clock-{secrets.token_hex(4)}"
            try:
                self.put(key, b"")
                about = self._requests.get(key, lambda: obstore.head(self._client, key))
                self._delete([key])
            except StorageError:
                return time.time()
            self._clock = about["last_modified"].timestamp() - monotonic, monotonic
        return self._clock[0] + monotonic

    def pin(self, prefix: str, listed: Mapping[str, Sequence[Any]]) -> None:
        """Take it that these files below a prefix never change: they may be kept. The last few thousand are known."""
        sizes = {f"{prefix}/{name}": int(about[0]) for name, about in listed.items()}
        with self._pinning:
            self._prefixes[prefix] = tuple(sizes)
            self._pinned.update(sizes)
            while len(self._pinned) > _PINNED and len(self._prefixes) > 1:
                for key in self._prefixes.pop(next(iter(self._prefixes))):
                    self._pinned.pop(key, None)

    def fresh(self) -> ObjectFiles:
        """Return the same files, read past the cache."""
        return ObjectFiles(self._client, self.uri, identity=self._identity, limits=self._requests.limits)

    def probe_publish(self) -> str:
        """Return how `put_new` works here, tried with a real object.

        Raises
        ------
        StorageError
            The server takes a second put-if-absent: commits would be lost. Or it refuses to write at all.
        """
        key = f"{PARTIAL}probe-{secrets.token_hex(4)}"
        try:
            if not self.put_new(key, b"first") or self.put_new(key, b"second"):
                raise StorageError(
                    f"{self.uri}: this server does not honour put-if-absent (If-None-Match), so commits could be lost; "
                    "put the store on another one"
                )
        finally:
            self._delete([key])
        return "put-if-absent"

    def require_empty(self) -> None:
        """Refuse a prefix under which something lies.

        Raises
        ------
        ConflictError
            Something does.
        """
        found = next(self.walk(""), None)
        if found is not None:
            raise ConflictError(f"{self.uri} is not empty ({found[0]}, …); choose another prefix")

    def _head(self, key: str) -> ObjectMeta | None:
        found = self._requests.ask(lambda: obstore.head(self._client, key))
        if not isinstance(found, Fault):
            return found
        if found.absent:
            return None
        self._request(key, 0, 1)  # why it is refused stands in a body, which a HEAD has not
        raise self._requests.error(found, key)

    def _get_if_any(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def _delete(self, keys: list[str]) -> None:
        found = self._requests.ask(lambda: obstore.delete(self._client, keys))
        if not isinstance(found, Fault):
            return
        if not found.absent:
            raise self._requests.error(found, keys[0])
        if len(keys) > 1:  # Azure and Google may stop at a key that is gone already: others are there still
            self._requests.many(lambda key: self._delete([key]), keys)

    def _await_copy(self, source: str, target: str) -> None:
        """Return when a copy is whole: Azure may answer before, and the target is empty until then."""
        until = time.monotonic() + self._requests.limits.seconds
        wanted = self.size(source)
        while wanted is not None and self.size(target) != wanted:
            if time.monotonic() > until:
                raise StorageError(f"{self.uri}/{target}: the copy does not end; run the same command again later")
            time.sleep(self._requests.limits.wait_s)

    def _fetch(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        limits = self._requests.limits
        pieces, owner = cut(ranges, limits.most_bytes)
        runs = list(coalesce(pieces, gap=limits.gap_bytes, most=limits.most_bytes))
        answers = self._requests.many(lambda run: self._request(key, run[0], run[1]), runs)
        found: list[list[Buffer]] = [[] for _ in ranges]
        parts: dict[int, memoryview] = {}
        for (start, _, members), answer in zip(runs, answers, strict=True):
            for i in members:
                at = pieces[i][0] - start
                parts[i] = answer[at : at + pieces[i][1]]
        for i, of in enumerate(owner):
            if i in parts:
                found[of].append(parts[i])
        return [some[0] if len(some) == 1 else b"".join(some) for some in found]

    def _request(self, key: str, start: int, stop: int) -> memoryview:
        found = self._requests.ask(lambda: memoryview(obstore.get_range(self._client, key, start=start, end=stop)))
        if isinstance(found, Fault):
            if found.past_end:
                return memoryview(b"")
            raise self._requests.error(found, key)
        return found

    def _through_cache(self, key: str, size: int, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        assert self.cache is not None
        name = f"{self._identity}/{key}"
        spans = [(at, min(at + length, size)) for at, length in ranges]
        needed = sorted(
            {b for at, end in spans if end > at for b in range(at // BLOCK_BYTES, math.ceil(end / BLOCK_BYTES))}
        )
        blocks: dict[int, Buffer] = {}
        for block in needed:
            kept = self.cache.get(name, block)
            if kept is not None and len(kept) == min(BLOCK_BYTES, size - block * BLOCK_BYTES):
                blocks[block] = kept
        missing = [block for block in needed if block not in blocks]
        wanted = [(block * BLOCK_BYTES, min(BLOCK_BYTES, size - block * BLOCK_BYTES)) for block in missing]
        for block, (_, length), data in zip(missing, wanted, self._fetch(key, wanted), strict=True):
            blocks[block] = data
            if len(data) == length:
                self.cache.put(name, block, data)
        found: list[Buffer] = []
        for at, end in spans:
            some = _blocks(at, end)
            whole = blocks[some[0]] if len(some) == 1 else b"".join(blocks[block] for block in some)
            begin = at - some[0] * BLOCK_BYTES if some else 0
            found.append(memoryview(whole)[begin : begin + max(0, end - at)])
        return found


def _blocks(start: int, stop: int) -> range:
    return range(start // BLOCK_BYTES, math.ceil(stop / BLOCK_BYTES)) if stop > start else range(0)


def _listed(about: Mapping[str, Any]) -> tuple[str, int, float]:
    return about["path"], about["size"], float(math.ceil(about["last_modified"].timestamp() + 0.999))
