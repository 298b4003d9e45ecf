"""The catalog says what the manifests say: after any changes, any damage to it, and beside other processes."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import CorruptionError, NotFoundError
from histostore.store import catalog_scan
from histostore.store.catalog import LEAST_OWNERS, NAME, catalog_path, known_slides, look, slides_where
from histostore.store.gc import plan_gc, run_gc
from histostore.store.manifest import manifest_folder, manifest_key
from histostore.store.store import Store, create_store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.progress import Progress
    from histostore.store.manifest import Ref

    type Seal = Callable[..., Ref]


def truth(store: Store) -> dict[str, tuple[int, dict[str, Ref], dict[str, str]]]:
    """Return number, entries and metadata of every slide, from the manifests alone."""
    found = {}
    for owner in store.owners():
        manifest = store.manifest(owner)
        if not manifest.deleted:
            fields = store.header(manifest.find("meta", "meta"))["attrs"]["fields"]
            found[owner] = (manifest.number, dict(manifest.entries), fields)
    return found


def told(store: Store) -> dict[str, tuple[int, dict[str, Ref], dict[str, str]]]:
    """Return the same, as the catalog has it."""
    found = look(store, contents=True)
    slides = found.slides()
    known = [found.known(slide).manifest for slide in slides]
    return {m.owner: (m.number, dict(m.entries), dict(f)) for m, f in zip(known, found.fields(slides), strict=True)}


@pytest.fixture
def many(tmp_path_factory: pytest.TempPathFactory, made_once: Path) -> Store:
    """Return a store of just so many slides that a catalog is kept."""
    return open_store(shutil.copytree(made_once, tmp_path_factory.mktemp("many") / "store"))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = create_store(tmp_path_factory.mktemp("once") / "store")
    for number in range(LEAST_OWNERS):
        fields = {"patient": f"P{number // 2}", "organ": ("kidney", "lung", "skin")[number % 3]}
        slide = f"S{number:03d}"
        with store.begin(slide, "meta", "meta", spec={"fields": fields}, inputs={}) as writer:
            store.commit(slide, [writer.seal(rows=1, attrs={"fields": fields})])
    return store.files.root  # type: ignore[attr-defined]


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let folders settle in a moment instead of two seconds; return how long that is."""
    monkeypatch.setattr(catalog_scan, "SETTLED_NS", 20_000_000)
    return 0.03


@pytest.mark.parametrize("seed", range(2))
def test_after_any_commits_deletes_and_new_slides_a_kept_catalog_is_the_rebuilt_one(
    store: Store, seal_meta: Seal, quick_clock: float, seed: int
) -> None:
    rng = random.Random(seed)
    slides = [f"S{i}" for i in range(8)]
    for step in range(60):
        slide, action = rng.choice(slides), rng.random()
        if action < 0.6:
            store.commit(slide, [seal_meta(store, slide, patient=f"P{step}")], replace=True)
        elif action < 0.75 and slide in truth(store):
            store.delete_slide(slide)
        elif action < 0.85:
            run_gc(plan_gc(store, grace_s=0, keep_history=False), erase=rng.random() < 0.7)
        if rng.random() < 0.3:
            time.sleep(quick_clock)
        if rng.random() < 0.6:
            assert told(store) == truth(store), step
            assert look(store).slides() == sorted(truth(store))
    time.sleep(quick_clock)
    look(store, contents=True)
    kept = look(store, contents=True)
    assert (kept.refreshed, kept.kept) == (0, True)
    rebuilt = look(store, contents=True, rebuild=True)
    assert rebuilt.refreshed == len(store.files.children("manifests"))
    assert kept.dump() == rebuilt.dump() == look(store, contents=True).dump()
    assert kept.dump().count("\n") == len(kept.owners)


def test_only_slides_that_changed_are_read_again(many: Store, seal_meta: Seal, quick_clock: float) -> None:
    look(many)
    time.sleep(quick_clock)
    look(many)
    assert look(many).refreshed == 0
    many.commit("S007", [seal_meta(many, "S007", patient="X")], replace=True)
    many.delete_slide("S008")
    many.commit("NEW", [seal_meta(many, "NEW")])
    found = look(many)
    assert found.refreshed == 3
    assert {"S008", "NEW"} & set(found.slides()) == {"NEW"}
    assert found.owners["S007"]["fields"] == {"patient": "X"}


def test_a_commit_in_the_same_moment_as_a_look_is_seen(store: Store, seal_meta: Seal) -> None:
    for turn in range(30):
        store.commit("S1", [seal_meta(store, "S1", patient=f"P{turn}")], replace=True)
        assert look(store).owners["S1"]["fields"] == {"patient": f"P{turn}"}


def test_a_slide_that_was_erased_and_came_again_with_the_same_number_is_read_again(
    store: Store, seal_meta: Seal, quick_clock: float
) -> None:
    store.commit("S1", [seal_meta(store, "S1", patient="old")])
    time.sleep(quick_clock)
    look(store)
    store.delete_slide("S1")
    run_gc(plan_gc(store, grace_s=0), erase=True)
    assert look(store).slides() == []
    store.commit("S1", [seal_meta(store, "S1", patient="new")])
    assert store.manifest("S1").number == 1
    assert look(store).owners["S1"]["fields"] == {"patient": "new"}


def test_no_damage_to_the_file_gives_a_wrong_answer(many: Store, quick_clock: float) -> None:
    right, path, rng = truth(many), catalog_path(many), random.Random(5)
    assert path is not None
    time.sleep(quick_clock)
    look(many, contents=True)
    whole, noticed = path.read_bytes(), 0
    for _ in range(60):
        data = bytearray(whole)
        how = rng.random()
        if how < 0.7:
            for _ in range(rng.choice((1, 1, 50))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif how < 0.85:
            del data[rng.randrange(len(data)) :]
        else:
            start = rng.randrange(len(data) // 4096) * 4096
            data[start : start + 4096] = bytes(4096)
        path.write_bytes(data)
        assert told(many) == right
        after = look(many, contents=True)
        assert (after.problem, after.refreshed) == ("", 0), "the damage was made good"
        noticed += path.read_bytes() != bytes(data)
        assert after.dump().count("\n") == len(right)
    assert noticed > 30


def _of_another_store(path: Path) -> None:
    other = create_store(path.parent.parent / "other")
    with other.begin("S000", "meta", "meta", spec={"fields": {"patient": "WRONG"}}, inputs={}) as writer:
        other.commit("S000", [writer.seal(rows=1, attrs={"fields": {"patient": "WRONG"}})])
    look(other, contents=True)
    shutil.copy(other.files.root / NAME, path)  # type: ignore[attr-defined]


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")
        database.execute("UPDATE owners SET row = '{}'")
        database.commit()


def _with_a_view(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE owners RENAME TO hidden")
        database.execute("CREATE VIEW owners AS SELECT * FROM hidden LIMIT 3")
        database.commit()


@pytest.mark.parametrize(
    "spoil",
    [
        _of_another_store,
        _newer,
        _with_a_view,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no database at all" * 500),
        lambda path: path.unlink(),
        lambda path: path.with_name(f"{NAME}-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" * 200),
    ],
    ids=["of another store", "newer", "a view", "empty", "text", "gone", "a journal"],
)
def test_a_file_that_is_not_ours_is_made_anew(many: Store, spoil: Callable[[Path], None], quick_clock: float) -> None:
    right, path = truth(many), catalog_path(many)
    assert path is not None
    time.sleep(quick_clock)
    before = look(many, contents=True).dump()
    spoil(path)
    assert told(many) == right
    after = look(many, contents=True)
    assert (after.refreshed, after.problem, after.kept) == (0, "", True)
    assert after.dump() == before


class _Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_that_it_was_made_anew_is_said_once(many: Store) -> None:
    look(many)
    path = catalog_path(many)
    assert path is not None
    path.write_bytes(b"x" * 10_000)
    said: Any = _Said()
    progress: Progress = said
    look(many, progress=progress)
    look(many, progress=progress)
    assert len(said.lines) == 1
    assert "made anew" in said.lines[0]


def test_where_no_file_can_be_kept_the_answer_is_the_same(many: Store) -> None:
    path = catalog_path(many)
    assert path is not None
    path.mkdir()
    assert told(many) == truth(many)
    assert not look(many).kept
    assert many.slides() == sorted(truth(many))


def test_nobody_waits_for_a_process_that_holds_the_file(many: Store, seal_meta: Seal) -> None:
    look(many, contents=True)
    with closing(sqlite3.connect(catalog_path(many) or "", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        many.commit("S001", [seal_meta(many, "S001", patient="X")], replace=True)
        begun = time.perf_counter()
        assert told(many) == truth(many)
        print(f"with the file held: {time.perf_counter() - begun:.2f} s")
        other.execute("ROLLBACK")
    assert told(many) == truth(many)
    assert look(many).kept


def test_processes_that_look_and_commit_at_once_agree(many: Store, python: Any) -> None:
    script = (
        "import sys; from histostore.store.store import open_store; from histostore.store.catalog import look\n"
        "store, me = open_store(sys.argv[1]), sys.argv[2]\n"
        "for turn in range(12):\n"
        "    fields = {'patient': f'{me}-{turn}'}\n"
        "    with store.begin(me, 'meta', 'meta', spec={'fields': fields}, inputs={}) as writer:\n"
        "        store.commit(me, [writer.seal(rows=1, attrs={'fields': fields})], replace=True)\n"
        "    assert look(store, contents=True).owners[me]['fields'] == fields, turn\n"
    )
    workers = [python(script, many.uri, f"W{i}") for i in range(3)]
    for worker in workers:
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
    assert told(many) == truth(many)
    assert look(many, contents=True).dump() == look(many, contents=True, rebuild=True).dump()


def test_a_damaged_newest_manifest_is_an_error_with_a_catalog_too(many: Store) -> None:
    number = many.manifest("S005").number
    path = many.files.root / manifest_key("S005", number)  # type: ignore[attr-defined]
    look(many)
    path.write_bytes(path.read_bytes()[:-20])
    (path.parent / "touched").touch()  # as whatever writes there does: its time changes
    for ask in (many.slides, lambda: known_slides(many)):
        with pytest.raises(CorruptionError, match="S005"):
            ask()
    assert list(look(many).unreadable) == ["S005"]


def test_a_damaged_header_is_read_and_refused_by_who_opens_it(many: Store) -> None:
    ref = many.manifest("S005").find("meta")
    path = many.files.root / ref.prefix / "GROUP.json"  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-20])
    found = look(many, contents=True)
    assert "meta/meta" not in found.known("S005").headers
    assert "meta/meta" in found.known("S006").headers


def test_metadata_that_cannot_be_read_is_an_error_and_not_none(many: Store) -> None:
    ref = many.manifest("S005").find("meta")
    path = many.files.root / ref.prefix / "GROUP.json"  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptionError, match="S005"):
        slides_where(many, "organ == 'kidney'")


def test_a_slide_whose_manifest_cannot_be_read_for_a_moment_is_not_left_out(many: Store) -> None:
    folder = many.files.root / "manifests" / "S005"  # type: ignore[attr-defined]
    newest = max(folder.glob("*.json"))
    data = newest.read_bytes()
    newest.write_bytes(data[:-20])
    found = look(many)
    newest.write_bytes(data)  # it can be read again
    with pytest.raises(CorruptionError, match="S005"):
        found.slides()
    assert "S005" in many.slides()


def test_slides_are_found_by_their_metadata(many: Store) -> None:
    right = [s for s, (_, _, f) in truth(many).items() if f["organ"] == "kidney" and f["patient"] != "P0"]
    assert slides_where(many, "organ == 'kidney' and patient != 'P0'") == right
    assert slides_where(many, "slide in ['S001', 'S002', 'nope']") == ["S001", "S002"]
    with pytest.raises(NotFoundError, match=r"did you mean .organ.?"):
        slides_where(many, "organs == 'kidney'")


def test_few_slides_keep_no_file(store: Store, seal_meta: Seal) -> None:
    store.commit("S1", [seal_meta(store)])
    assert store.slides() == ["S1"]
    assert [k.manifest.number for k in known_slides(store)] == [1]
    assert not (store.files.root / NAME).exists()  # type: ignore[attr-defined]


def test_verify_takes_the_file_for_what_it_is(many: Store) -> None:
    from histostore.store.verify import verify

    look(many)
    assert verify(many).problems == ()


def test_a_bucket_has_its_catalog_in_the_users_cache(bucket: str, seal_meta: Seal) -> None:
    store = create_store(bucket, name="bucket")
    for slide in ("S1", "S2", "S3"):
        store.commit(slide, [seal_meta(store, slide, patient=slide)])
    assert told(store) == truth(store)
    path = catalog_path(store)
    assert path is not None
    assert store.uuid in path.name
    assert path.exists()
    store.delete_slide("S2")
    assert store.slides() == ["S1", "S3"]
    assert look(store, contents=True).dump() == look(store, contents=True, rebuild=True).dump()
    assert not store.files.size(NAME)
    assert store.files.children(manifest_folder("S2"))
