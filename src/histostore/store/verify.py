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
from histostore.store.lineage import all_left_behind
from histostore.store.manifest import manifest_key
from histostore.store.store import HEADER, open_files
from histostore.store.survey import is_partial, owners_of, survey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.store.group_check import Finding
    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.store.survey import AttemptFolder, Survey

type Severity = Literal["error", "warning", "note"]

_TOP = (HEADER, "catalog.sqlite", "catalog.sqlite-journal", "catalog.sqlite-wal", "catalog.sqlite-shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be."""

    severity: Severity
    """``error``: committed bytes are gone or differ. ``warning``: something lies about that gc removes or a person
    should look at. ``note``: as it may be while others write."""
    kind: str
    """What it is: ``manifest``, ``gap``, ``chain``, ``header``, ``format``, ``missing``, ``size``, ``sha256``,
    ``chunk``, ``rows``, ``values``, ``undeclared``, ``quarantined``, ``uncommitted``, ``abandoned``, ``running``,
    ``partial``, ``leftover``, ``outdated``, ``store``."""
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
    StorageError
        The medium refuses to be read (no permission, no answer), so that it is not known whether there is damage.
    """
    store = replace(store, files=store.files.fresh())  # the store itself, not what was kept of it
    progress = progress or Silent()
    parts = []
    if slides is None:
        parts.append(top_level(store))
    for owner in chosen_owners(store, slides):
        part = OwnerCheck(store, survey(store.files, owner))
        checks = part.groups()
        progress.start(
            f"verify {owner}", sum(len(c.folder.files) for c in checks if c.folder is not None), unit="files"
        )
        part.take([check_group(store, c, deep=deep, progress=progress) for c in checks])
        progress.finish()
        parts.append(part)
    return report_of(store, parts, deep=deep)


def chosen_owners(store: Store, slides: Sequence[str] | None) -> list[str]:
    """Return the owners to check, each once; all of them by default.

    Raises
    ------
    NotFoundError
        One that was asked for is not there.
    """
    owners = owners_of(store)
    for slide in slides or ():
        if slide not in owners:
            raise NotFoundError(f"no slide '{slide}' in {store.uri}{near(slide, owners)}")
    return owners if slides is None else list(dict.fromkeys(slides))


def report_of(store: Store, parts: Sequence[OwnerCheck], *, deep: bool) -> VerifyReport:
    """Return what the checks of the owners add up to, in their order."""
    counts = Counter(dict.fromkeys(("owners", "manifests", "groups", "files", "bytes"), 0))
    for part in parts:
        counts.update(part.counts)
    problems = tuple(problem for part in parts for problem in part.problems)
    return VerifyReport(uri=store.uri, deep=deep, problems=problems, counts=dict(counts))


@dataclass(frozen=True, slots=True)
class CheckedGroup:
    """One group to check; it can be pickled, and checked on another machine."""

    ref: Ref
    folder: AttemptFolder | None
    """What lies there, as listed."""
    current: bool
    """Whether the newest manifest names it."""


type Checked = tuple[Mapping[str, int], Sequence[Finding]]
"""Counts and findings of one group."""


def check_group(store: Store, group: CheckedGroup, *, deep: bool, progress: Progress | None = None) -> Checked:
    """Check one group, its bytes too when `deep`."""
    check = GroupCheck(store.files, group.ref, group.folder, deep, progress or Silent())
    check.run()
    return check.counts, check.findings


def top_level(store: Store) -> OwnerCheck:
    """Look at the store's header, and at what lies beside it."""
    part = OwnerCheck(store, None)
    part.top_level()
    return part


@dataclass(slots=True)
class OwnerCheck:
    """The check of one owner: its manifests, the groups they name, the attempts they do not.

    `groups` comes first; whoever checks them, `take` is given the answers.
    """

    store: Store
    found: Survey | None
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _checks: list[CheckedGroup] = field(default_factory=list)

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

    def groups(self) -> list[CheckedGroup]:
        """Check the manifests and return the groups that they name, to be checked."""
        found = self.found
        assert found is not None
        self.counts["owners"] += 1
        self._manifests(found)
        named = found.named()
        current = {ref.prefix for ref in found.newest.entries.values()} if found.newest is not None else set()
        for prefix, (ref, _) in named.items():
            self.counts["groups"] += 1
            attempt = found.attempts.get(prefix)
            if attempt is not None and attempt.damaged and prefix not in current:
                text = "put aside as damaged; older manifests name it until `histostore gc --history`"
                self._add("warning", "quarantined", ref.owner, ref.prefix, text, ref, current=False)
                continue
            self._checks.append(CheckedGroup(ref, attempt, prefix in current))
        return self._checks

    def take(self, answers: Sequence[Checked]) -> None:
        """Take what was found of the groups, in their order, and look at what no manifest names."""
        found = self.found
        assert found is not None
        for check, (counts, findings) in zip(self._checks, answers, strict=True):
            self.counts.update(counts)
            for f in findings:
                self._add(f.severity, f.kind, check.ref.owner, f.path, f.text, check.ref, current=check.current)
        for outdated in all_left_behind(self.store, found.newest) if found.newest is not None else ():
            self._add("warning", "outdated", found.owner, outdated.ref.prefix, str(outdated), outdated.ref)
        named = found.named()
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
