"""Is everything that was committed still there, byte for byte? Damage is reported, never raised."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from histostore.errors import HistostoreError, NotFoundError, near
from histostore.progress import Progress, Silent
from histostore.store.group_check import GroupCheck
from histostore.store.groups import LOCK
from histostore.store.manifest import manifest_key
from histostore.store.store import HEADER, open_files
from histostore.store.survey import is_partial, owners_of, survey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.store.survey import AttemptFolder, Survey

type Severity = Literal["error", "warning", "note"]

_TOP = (HEADER, "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be."""

    severity: Severity
    """``error``: committed bytes are gone or differ. ``warning``: something lies about that gc removes or a person
    should look at. ``note``: as it may be while others write."""
    kind: str
    """What it is: ``manifest``, ``gap``, ``chain``, ``header``, ``format``, ``missing``, ``size``, ``sha256``,
    ``chunk``, ``rows``, ``values``, ``undeclared``, ``quarantined``, ``uncommitted``, ``abandoned``, ``running``,
    ``partial``, ``leftover``, ``store``."""
    owner: str
    """The slide, ``@heads`` or ``@indexes``; empty for the store itself."""
    path: str
    """Key below the store."""
    text: str
    ref: Ref | None = None
    """The committed group it is in."""
    current: bool = True
    """Whether the newest manifest names that group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` found."""

    uri: str
    deep: bool
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]
    """``owners``, ``manifests``, ``groups``, ``files``, ``bytes`` and, when deep, ``chunks`` that were checked."""

    @property
    def ok(self) -> bool:
        """Whether everything committed is whole (warnings and notes do not count)."""
        return not self.errors

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that are damage."""
        return tuple(p for p in self.problems if p.severity == "error")

    def damaged(self) -> list[Ref]:
        """Return the groups of newest manifests that are damaged, each once."""
        refs = {p.ref.prefix: p.ref for p in self.errors if p.ref is not None and p.current}
        return list(refs.values())


def verify(
    store: Store, *, deep: bool = True, slides: Sequence[str] | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Check every manifest, group, file and chunk of a store.

    Parameters
    ----------
    deep
        Read all bytes: sha256 of every file, and every chunk decoded against its checksum. Otherwise sizes alone are
        compared, without opening a data file. Memory stays at a few chunks either way.
    slides
        Only these (``@heads`` and ``@indexes`` may be among them); everything by default.
    progress
        Told of every file.

    Raises
    ------
    NotFoundError
        A slide that was asked for is not there. Damage is reported, not raised.
    """
    store = replace(store, files=store.files.fresh())  # the store itself, not what was kept of it
    run = _Run(store, deep, progress or Silent())
    owners = owners_of(store)
    for slide in slides or ():
        if slide not in owners:
            raise NotFoundError(f"no slide '{slide}' in {store.uri}{near(slide, owners)}")
    if slides is None:
        run.top_level()
    for owner in owners if slides is None else dict.fromkeys(slides):
        run.owner(survey(store.files, owner))
    return VerifyReport(uri=store.uri, deep=deep, problems=tuple(run.problems), counts=dict(run.counts))


@dataclass(slots=True)
class _Run:
    store: Store
    deep: bool
    progress: Progress
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(("owners", "manifests", "groups", "files", "bytes"), 0))
    )

    def top_level(self) -> None:
        """Look at the header, and at what lies beside it."""
        try:
            open_files(self.store.files)
        except HistostoreError as error:
            self._add("error", "store", "", HEADER, str(error))
        for key, _, _ in self.store.files.walk("", recurse=False):
            if is_partial(key):
                self._add("warning", "partial", "", key, "left by a killed writer; `histostore gc` removes it")
            elif key not in _TOP:
                self._add("warning", "undeclared", "", key, "not part of a store")

    def owner(self, found: Survey) -> None:
        """Check one owner: manifests, the groups they name, the attempts they do not."""
        self.counts["owners"] += 1
        self._manifests(found)
        named = found.named()
        current = {ref.prefix for ref in found.newest.entries.values()} if found.newest is not None else set()
        total = sum(len(found.attempts[p].files) for p in named if p in found.attempts)
        self.progress.start(f"verify {found.owner}", total, unit="files")
        for prefix, (ref, _) in named.items():
            self._group(ref, found.attempts.get(prefix), current=prefix in current)
        self.progress.finish()
        for prefix, attempt in found.attempts.items():
            if prefix not in named:
                self._orphan(attempt, sure=not found.unreadable)
        for key in found.stray:
            if is_partial(key):
                self._add("warning", "partial", found.owner, key, "left by a killed writer; `histostore gc` removes it")
            else:
                self._add("warning", "undeclared", found.owner, key, "not part of a store")

    def _manifests(self, found: Survey) -> None:
        self.counts["manifests"] += len(found.numbers)
        for number, error in found.unreadable.items():
            newest = number == found.numbers[-1]
            what = "the newest one: the slide cannot be read" if newest else "an older one: the slide can be read"
            self._add("error", "manifest", found.owner, manifest_key(found.owner, number), f"{error} ({what})")
        for before, after in pairwise(found.numbers):
            if after != before + 1:
                text = f"manifests {before + 1}-{after - 1} are missing"
                self._add("error", "gap", found.owner, manifest_key(found.owner, after), text)
                continue
            earlier, later = found.manifests.get(before), found.manifests.get(after)
            if earlier is not None and later is not None and later.parent_id != earlier.write_id:
                text = f"it was not written after manifest {before} as it is there now"
                self._add("error", "chain", found.owner, manifest_key(found.owner, after), text)

    def _group(self, ref: Ref, attempt: AttemptFolder | None, *, current: bool) -> None:
        self.counts["groups"] += 1
        if attempt is not None and attempt.damaged and not current:
            text = "put aside as damaged; older manifests name it until `histostore gc --history`"
            self._add("warning", "quarantined", ref.owner, ref.prefix, text, ref, current=False)
            self.progress.advance(len(attempt.files))
            return
        check = GroupCheck(self.store.files, ref, attempt, self.deep, self.progress)
        check.run()
        self.counts.update(check.counts)
        for finding in check.findings:
            self._add(finding.severity, finding.kind, ref.owner, finding.path, finding.text, ref, current=current)

    def _orphan(self, attempt: AttemptFolder, *, sure: bool) -> None:
        if attempt.sealed and sure:
            text = "sealed, and in no manifest; the command that made it commits it when run again, or gc removes it"
            self._add("warning", "uncommitted", attempt.owner, attempt.prefix, text)
        elif attempt.sealed:
            text = "sealed, and in no manifest that can be read"
            self._add("warning", "uncommitted", attempt.owner, attempt.prefix, text)
        elif self.store.files.locked(f"{attempt.prefix}/{LOCK}"):
            self._add("note", "running", attempt.owner, attempt.prefix, "being written now")
        else:
            text = "left by a killed writer; the same command goes on with it, or `histostore gc` removes it"
            self._add("warning", "abandoned", attempt.owner, attempt.prefix, text)

    def _add(
        self, severity: Severity, kind: str, owner: str, path: str, text: str, ref: Ref | None = None,
        *, current: bool = True,
    ) -> None:  # fmt: skip
        self.problems.append(
            Problem(severity=severity, kind=kind, owner=owner, path=path, text=text, ref=ref, current=current)
        )
