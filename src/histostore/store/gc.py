"""What may be removed, and its removal. Nothing that a kept manifest names, and nothing that is being written.

In a store whose tiles have no pixels group (codec ``slide``) the images are part of the data, though they lie outside:
gc never touches them, and they must not be removed by hand; `histostore info` and ``doctor`` warn of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from histostore.errors import HistostoreError, NotFoundError, UsageError
from histostore.schema.kinds import check_format
from histostore.store.groups import LOCK
from histostore.store.manifest import GROUP, manifest_key, numbers, read_manifest
from histostore.store.survey import AttemptFolder, Found, Survey, is_partial, owners_of, survey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from histostore.store.files import Files
    from histostore.store.store import Store

type Reason = Literal["abandoned", "uncommitted", "partial", "leftover", "history", "superseded", "deleted"]

DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GcItem:
    """One file or attempt that may go."""

    reason: Reason
    """``abandoned``: a killed writer's attempt. ``uncommitted``: sealed, and in no manifest. ``partial``,
    ``leftover``: single files that killed writers left. ``history``: an old manifest. ``superseded``: a group that
    only old manifests name. ``deleted``: manifests and groups of a slide that has a tombstone."""
    owner: str
    path: str
    """Key of the file, or the attempt's folder."""
    files: int
    bytes: int
    whole: bool
    """Whether `path` is a folder that goes whole."""

    @property
    def kind(self) -> str:
        """What it is of: a kind of group, ``manifest``, or ``file`` at the top of the store."""
        top, *rest = self.path.split("/")
        if top == "manifests":
            return "manifest"
        return rest[1] if top == "slides" and len(rest) > 1 else top if rest else "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """What a gc would remove now."""

    store: Store
    grace_s: float
    items: tuple[GcItem, ...]
    left: Mapping[str, str]
    """Owners that are left alone, and why (a manifest that cannot be read)."""
    running: int
    """Attempts that are being written."""
    young: int
    """Attempts and files that are garbage, and younger than the grace."""

    @property
    def files(self) -> int:
        """Files that would go."""
        return sum(i.files for i in self.items)

    @property
    def bytes(self) -> int:
        """Bytes that would go."""
        return sum(i.bytes for i in self.items)

    def by_reason(self) -> dict[str, tuple[int, int]]:
        """Return (files, bytes) for each reason."""
        return _totals((item.reason, item) for item in self.items)

    def by_group(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """Return (files, bytes) for each owner, kind and reason, the owners in order."""
        return dict(sorted(_totals(((i.owner, i.kind, str(i.reason)), i) for i in self.items).items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What a gc removed."""

    removed: tuple[GcItem, ...]
    kept: tuple[GcItem, ...]
    """Planned and left alone: adopted, committed or changed meanwhile, or to be erased without `erase`."""

    @property
    def files(self) -> int:
        """Files that are gone."""
        return sum(i.files for i in self.removed)

    @property
    def bytes(self) -> int:
        """Bytes that are gone."""
        return sum(i.bytes for i in self.removed)


def _totals[K](items: Iterable[tuple[K, GcItem]]) -> dict[K, tuple[int, int]]:
    found: dict[K, tuple[int, int]] = {}
    for key, item in items:
        files, size = found.get(key, (0, 0))
        found[key] = (files + item.files, size + item.bytes)
    return found


def plan_gc(store: Store, *, grace_s: float = DAY, keep_history: bool = True, keep_last: int = 1) -> GcPlan:
    """Say what may be removed. Changes nothing.

    Parameters
    ----------
    grace_s
        What was written in the last so many seconds (by the store's own file times) is left alone, so that a writer
        between seal and commit, and a reader of a manifest that was just superseded, lose nothing.
    keep_history
        Keep older manifests and what they name. Without it only what the newest manifests name stays.
    keep_last
        How many of the newest manifests of each owner are kept where history is not; 1 is the one that readers take.
        Snapshots of indexes, and heads, are groups of manifests like any other.

    Notes
    -----
    A slide with a tombstone is planned for removal too, whatever its age, and is removed by ``run_gc(erase=True)``
    alone. An owner with a manifest that cannot be read is left alone altogether: what it names is not known.
    """
    if grace_s < 0:
        raise UsageError(f"grace is {grace_s} s, not 0 or more")
    if keep_last < 1:
        raise UsageError(f"keep_last is {keep_last}: the newest manifest is always kept, so give 1 or more")
    plan = _Planner(store.files, store.files.now() - grace_s, keep_history, keep_last)
    plan.top_level()
    for owner in owners_of(store):
        plan.owner(survey(store.files, owner))
    return GcPlan(
        store=store,
        grace_s=grace_s,
        items=tuple(plan.items),
        left=plan.left,
        running=plan.counts["running"],
        young=plan.counts["young"],
    )


def run_gc(plan: GcPlan, *, erase: bool = False) -> GcReport:
    """Remove what was planned, looking again before each removal.

    Parameters
    ----------
    erase
        Remove the bytes of deleted slides too. They cannot be brought back.

    Raises
    ------
    StorageError
        The disk refused; what was removed until then is gone, the rest is as it was.
    """
    check_format(plan.store.format, where=plan.store.uri, writing=True)
    files = plan.store.files
    removed: list[GcItem] = []
    kept: list[GcItem] = []
    oldest = files.now() - plan.grace_s
    for item in plan.items:
        if item.reason == "deleted" and not erase:
            gone = False
        elif item.whole:
            gone = _remove_attempt(files, item, oldest)
        elif item.reason in ("history", "deleted"):
            gone = _remove_manifest(files, item)
        else:
            files.delete(item.path)
            gone = True
        (removed if gone else kept).append(item)
    return GcReport(removed=tuple(removed), kept=tuple(kept))


@dataclass(slots=True)
class _Planner:
    files: Files
    oldest: float
    """What was written after this is young."""
    keep_history: bool
    keep_last: int
    items: list[GcItem] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def top_level(self) -> None:
        for key, size, mtime in self.files.walk("", recurse=False):
            if is_partial(key):
                self._file("partial", "", key, Found(size, mtime))

    def owner(self, found: Survey) -> None:
        for key, about in found.stray.items():
            if is_partial(key):
                self._file("partial", found.owner, key, about)
        if found.unreadable:
            number, error = next(iter(found.unreadable.items()))
            self.left[found.owner] = f"manifest {number} cannot be read: {error}"
            return
        deleted = found.newest is not None and found.newest.deleted
        old = found.numbers if deleted else self._old_manifests(found)
        for number in old:
            self._manifest("deleted" if deleted else "history", found, number)
        named = found.named()
        for prefix, attempt in found.attempts.items():
            naming = named[prefix][1] if prefix in named else []
            if not naming:
                self._orphan(attempt)
            elif set(naming) <= set(old) and deleted:
                self._whole("deleted", attempt)
            elif set(naming) <= set(old):
                self._aged("superseded", attempt)
            else:
                for name in [*attempt.leftovers(), *(n for n in attempt.files if is_partial(n))]:
                    reason: Reason = "partial" if is_partial(name) else "leftover"
                    self._file(reason, found.owner, f"{attempt.prefix}/{name}", attempt.files[name])

    def _old_manifests(self, found: Survey) -> list[int]:
        """Return the first manifests, up to one that was superseded within the grace, or that is to be kept."""
        old: list[int] = []
        for number, after in pairwise(found.numbers[: max(0, len(found.numbers) - self.keep_last + 1)]):
            if self.keep_history or found.manifest_times[after] > self.oldest:
                break
            old.append(number)
        return old

    def _orphan(self, attempt: AttemptFolder) -> None:
        if self.files.locked(f"{attempt.prefix}/{LOCK}"):
            self.counts["running"] += 1
        else:
            self._aged("uncommitted" if attempt.sealed else "abandoned", attempt)

    def _aged(self, reason: Reason, attempt: AttemptFolder) -> None:
        if attempt.newest > self.oldest:
            self.counts["young"] += 1
        else:
            self._whole(reason, attempt)

    def _whole(self, reason: Reason, attempt: AttemptFolder) -> None:
        self.items.append(
            GcItem(
                reason=reason, owner=attempt.owner, path=attempt.prefix, files=len(attempt.files),
                bytes=attempt.bytes, whole=True,
            )
        )  # fmt: skip

    def _manifest(self, reason: Reason, found: Survey, number: int) -> None:
        key, size = manifest_key(found.owner, number), found.manifest_sizes[number]
        self.items.append(GcItem(reason=reason, owner=found.owner, path=key, files=1, bytes=size, whole=False))

    def _file(self, reason: Reason, owner: str, key: str, about: Found) -> None:
        if about.mtime > self.oldest:
            self.counts["young"] += 1
        else:
            self.items.append(GcItem(reason=reason, owner=owner, path=key, files=1, bytes=about.size, whole=False))


def _remove_manifest(files: Files, item: GcItem) -> bool:
    """Remove an old manifest; they are planned, and so removed, from the oldest on."""
    number = int(item.path.rpartition("/")[2][:-5])
    known = numbers(files, item.owner)
    if number not in known or number != known[0]:
        return False
    newest = read_manifest(files, item.owner)
    if item.reason == "deleted" and not newest.deleted:
        return False
    if item.reason == "history" and newest.number == number:
        return False
    files.delete(item.path)
    return True


def _remove_attempt(files: Files, item: GcItem, oldest: float) -> bool:
    """Remove one attempt if it is still garbage.

    Its lock is taken, so that nobody goes on with it. The header is withdrawn first and everything looked at once more:
    a writer that took a sealed attempt for its own in that moment finds the header gone, or its mark is seen and the
    header put back.
    """
    key = f"{item.path}/{LOCK}"
    fresh = files.size(key) is None
    lock = files.lock(key)
    if lock is None:
        return False
    try:
        kept = _wanted(files, item, oldest) or not _withdraw(files, item, oldest)
        if not kept:
            files.delete_tree(item.path)
        elif fresh:
            files.delete(key)
    finally:
        lock.release()
    return not kept


def _withdraw(files: Files, item: GcItem, oldest: float) -> bool:
    """Take an attempt's header away, unless that shows that it is wanted after all."""
    key = f"{item.path}/{GROUP}"
    try:
        header = files.get(key)
    except FileNotFoundError:
        return True
    files.delete(key)
    wanted = True  # also where that cannot be found out
    try:
        wanted = _wanted(files, item, oldest)
    finally:
        if wanted:
            files.put_new(key, header)
    return not wanted


def _wanted(files: Files, item: GcItem, oldest: float) -> bool:
    """Whether a manifest names an attempt, or cannot be read, or the attempt has become young."""
    for number in numbers(files, item.owner):
        try:
            entries = read_manifest(files, item.owner, number).entries
        except NotFoundError:
            continue  # another gc removed it
        except HistostoreError:
            return True
        if any(ref.prefix == item.path for ref in entries.values()):
            return True
    if item.reason == "deleted":
        return False
    return any(mtime > oldest for key, _, mtime in files.walk(item.path) if key != f"{item.path}/{LOCK}")
