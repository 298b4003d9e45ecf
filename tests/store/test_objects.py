"""A bucket offers what a folder offers, on a real S3 server, and through one that fails a tenth of all requests."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from histostore.errors import ConflictError, HistostoreError, NotFoundError, StorageError, UsageError
from histostore.store.files import LocalFiles
from histostore.store.gc import plan_gc, run_gc
from histostore.store.groups import LOCK
from histostore.store.object_client import Limits
from histostore.store.object_lease import Lease
from histostore.store.objects import ObjectFiles, open_objects
from histostore.store.store import create_store, open_store
from histostore.store.verify import verify
from histostore.testing.faults import faulty_proxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.testing.azure import AzureServer
    from histostore.testing.s3 import S3Server

DATA = np.random.default_rng(3).bytes(3_000_000)


def through(
    cloud: S3Server | AzureServer, port: int, monkeypatch: pytest.MonkeyPatch, keys: str = "writer", seconds: str = "1"
) -> None:
    """Lead the environment to a proxy."""
    for name, value in cloud.environment(keys, port=port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HISTOSTORE_OBJECT_TIMEOUT", seconds)


def test_a_folder_is_what_a_store_asks_for(tmp_path: Path) -> None:
    offers_what_a_store_asks_for(LocalFiles(tmp_path / "root", make=True))


def test_a_bucket_and_a_folder_are_the_same_to_a_store(bucket: str) -> None:
    offers_what_a_store_asks_for(open_objects(bucket))


def offers_what_a_store_asks_for(files: LocalFiles | ObjectFiles) -> None:
    files.put("a/b/c", b"one", b"", memoryview(b"two"))
    assert files.get("a/b/c") == b"onetwo"
    files.put("a/b/c", b"three")
    assert files.get("a/b/c") == b"three"
    assert files.read_ranges("a/b/c", [(1, 3), (0, 2), (3, 9), (7, 1), (2, 0)]) == [b"hre", b"th", b"ee", b"", b""]
    assert files.read_ranges("a/b/c", []) == []
    mapped = files.map("a/b/c")
    assert mapped is None or mapped == b"three"
    assert files.size("a/b/c") == 5
    assert files.size("a/b/none") is None
    files.put("empty")
    assert files.get("empty") == b""
    assert files.put_new("a/new", b"mine")
    assert not files.put_new("a/new", b"yours")
    assert files.get("a/new") == b"mine"
    assert files.copy("a/new", "x/copy")
    assert files.get("x/copy") == b"mine"
    assert not files.copy("a/none", "x/none")
    assert files.children("a") == ["b/", "new"]
    assert files.children("none") == []
    before = files.now()
    files.put("@heads/x+y~1/c", b"")
    found = {key: (size, mtime) for key, size, mtime in files.walk("")}
    assert {k: v[0] for k, v in found.items()} == {"@heads/x+y~1/c": 0, "a/b/c": 5, "a/new": 4, "empty": 0, "x/copy": 4}
    assert before - 1.1 <= found["@heads/x+y~1/c"][1] <= files.now() + 3
    assert [key for key, _, _ in files.walk("", recurse=False)] == ["empty"]
    assert sorted(key for key, _, _ in files.walk("a")) == ["a/b/c", "a/new"]
    files.delete("a/none")
    files.delete("a/new")
    files.delete_tree("a")
    files.delete_tree("none")
    assert {key for key, _, _ in files.walk("")} == {"@heads/x+y~1/c", "empty", "x/copy"}
    with pytest.raises(FileNotFoundError):
        files.get("a/new")
    with pytest.raises(FileNotFoundError):
        files.read_ranges("a/new", [(0, 1)])
    for bad in ("../x", "/x", "a/../../x", "a\0b", ""):
        with pytest.raises(UsageError):
            files.get(bad)
    with files.lock("a/LOCK") or pytest.fail("the lock is free"):  # type: ignore[attr-defined]
        assert files.locked("a/LOCK")
        assert files.lock("a/LOCK") is None
    assert not files.locked("a/LOCK")
    assert files.fresh().get("x/copy") == b"mine"


def test_a_large_object_is_sent_in_parts_and_read_by_pieces_side_by_side(bucket: str) -> None:
    limits = Limits(single_bytes=6 << 20, part_bytes=5 << 20, most_bytes=1 << 20)
    plain = open_objects(bucket)
    files = ObjectFiles(plain._client, bucket, limits=limits)
    data = DATA * 3
    files.put("big", data)
    assert files.get("big") == data
    ranges = [(5, 10), (0, 4_000_000), (8_999_990, 100), (2_000_000, 1)]
    assert files.read_ranges("big", ranges) == [data[at : at + n] for at, n in ranges]


def test_of_many_writers_of_one_key_exactly_one_wins(bucket: str) -> None:
    files = open_objects(bucket)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: files.put_new("key", f"writer {n}".encode()), range(16)))
    assert sum(won) == 1
    assert files.get("key") == f"writer {won.index(True)}".encode()


def test_commits_of_different_groups_all_land_and_none_is_lost(bucket: str, seal_meta: Callable[..., Ref]) -> None:
    store = create_store(bucket, name="many")

    def work(n: int) -> str:
        mine = open_store(bucket)
        ref = seal_meta(mine, name=f"m{n}", patient=str(n))
        mine.commit("S1", [ref])
        return ref.key

    with ThreadPoolExecutor(6) as pool:
        keys = list(pool.map(work, range(12)))
    newest = store.slide("S1")
    assert (sorted(newest.entries), newest.number) == (sorted(keys), 12)


def test_of_two_writers_of_one_group_one_is_kept_and_both_are_told(bucket: str, seal_meta: Callable[..., Ref]) -> None:
    store = create_store(bucket, name="same")
    refs = [seal_meta(store, engine=n) for n in range(2)]
    with ThreadPoolExecutor(2) as pool:
        commits = list(pool.map(lambda ref: open_store(bucket).commit("S1", [ref]), refs))
    assert sorted(len(c.added) for c in commits) == [0, 1]
    assert sorted(len(c.already_there) for c in commits) == [0, 1]
    assert store.slide("S1").find("meta") in refs


def test_a_tenth_of_all_requests_fails_and_nothing_is_lost_doubled_or_wrong(
    bucket: str, cloud: S3Server | AzureServer, monkeypatch: pytest.MonkeyPatch, seal_meta: Callable[..., Ref]
) -> None:
    create_store(bucket, name="faults")
    with faulty_proxy(cloud.port, rate=0.1, hang_s=0.8, seed=5) as proxy:
        through(cloud, proxy.port, monkeypatch, seconds="0.6")
        files = open_objects(bucket)

        def work(n: int) -> tuple[int, bool]:
            store, ref = open_store(bucket), None
            ref = seal_meta(store, name=f"m{n}", patient=str(n))
            added = store.commit("S1", [ref]).added
            files.put(f"data/{n}", DATA[n * 1000 : 2_000_000])
            assert files.get(f"data/{n}") == DATA[n * 1000 : 2_000_000]
            some = [(k * 70_000, 5000) for k in range(20)]
            assert files.read_ranges(f"data/{n}", some) == [DATA[n * 1000 :][a : a + k] for a, k in some]
            return n, added == (ref.key,)

        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(work, range(12)))
        manifest = open_store(bucket).slide("S1")
        kinds = {name.split()[0] for name in proxy.faults}
        print(sum(proxy.requests.values()), "requests,", dict(proxy.faults))
    assert all(ok for _, ok in done)
    assert (len(manifest.entries), manifest.number) == (12, 12)
    assert kinds == {"500", "503", "hang", "cut", "lost"}


def test_an_answer_that_is_lost_is_neither_a_conflict_nor_a_second_commit(
    bucket: str, cloud: S3Server | AzureServer, monkeypatch: pytest.MonkeyPatch, seal_meta: Callable[..., Ref]
) -> None:
    create_store(bucket, name="lost")
    with faulty_proxy(cloud.port) as proxy:
        through(cloud, proxy.port, monkeypatch)
        store = open_store(bucket)
        ref = seal_meta(store)
        proxy.lose_next = "PUT"
        commit = store.commit("S1", [ref])
        assert proxy.faults == {"lost PUT": 1}
    assert (commit.added, commit.manifest.number) == ((ref.key,), 1)
    assert store.header(commit.manifest.find("meta"))["kind"] == "meta"


def test_an_outage_ends_in_one_line_within_the_limits(
    bucket: str, cloud: S3Server | AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(cloud.port) as proxy:
        through(cloud, proxy.port, monkeypatch)
        proxy.answer = 503, "SlowDown"
        files = ObjectFiles(open_objects(bucket)._client, bucket, limits=Limits(tries=2, wait_s=0.01))
        for ask in (lambda: files.get("x"), lambda: files.put("x", b""), lambda: files.put_new("x", b"")):
            with pytest.raises(StorageError, match=r"SlowDown"):
                ask()
    through(cloud, 9, monkeypatch)  # where nobody listens
    with pytest.raises(StorageError, match="does not answer"):
        ObjectFiles(open_objects(bucket)._client, bucket, limits=Limits(tries=2, wait_s=0.01)).get("x")


REFUSALS = {
    "wrong region": (301, "PermanentRedirect", "set AWS_REGION"),
    "wrong region, signed": (400, "AuthorizationHeaderMalformed", "set AWS_REGION"),
    "clock skew of a day": (403, "RequestTimeTooSkewed", "set the clock"),
    "expired": (400, "ExpiredToken", "have expired"),
    "bad keys": (403, "SignatureDoesNotMatch", "credentials are not accepted"),
    "bad keys of Azure": (403, "AuthenticationFailed", "credentials are not accepted"),
    "no such bucket": (404, "NoSuchBucket", "no such bucket"),
    "no such container": (404, "ContainerNotFound", "no such bucket"),
    "a network rule of Azure": (403, "AuthorizationFailure", "network rules"),
    "no anonymous access": (409, "PublicAccessNotPermitted", "credentials are not accepted"),
    "under a legal hold": (409, "BlobImmutableDueToPolicy", "permission denied"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_server_refuses_is_said_in_one_line_without_a_secret(
    name: str, bucket: str, cloud: S3Server | AzureServer, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    status, code, advice = REFUSALS[name]
    with faulty_proxy(cloud.port) as proxy:
        through(cloud, proxy.port, monkeypatch)
        proxy.answer = status, code
        for command in ("info", "init", "verify"):
            said = cli(command, bucket, code=3)
            assert len(said.stderr.strip().splitlines()) == 1
            assert advice in said.stderr
            assert code in said.stderr or "redirected" in said.stderr
            for secret in cloud.secrets:
                assert secret not in said.stderr + said.stdout


BAD = {"AWS_ACCESS_KEY_ID": "NOBODYKNOWSTHISKEY", "AWS_SECRET_ACCESS_KEY": "not/the+secret=of-anyone"}
BAD_OF_AZURE = {
    "AZURE_STORAGE_ACCOUNT_KEY": "bm90L3RoZStrZXk9b2YtYW55b25l",
    "AZURE_STORAGE_SAS_TOKEN": "sig=bm90&sp=r&sv=x",
}


@pytest.mark.parametrize("which", [0, 1])
def test_bad_keys_are_refused_and_never_printed(
    which: int, bucket: str, cloud: S3Server | AzureServer, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    name, bad = list((BAD if cloud.scheme == "s3" else BAD_OF_AZURE).items())[which]
    for other in BAD_OF_AZURE:
        monkeypatch.setenv(other, "")
    monkeypatch.setenv(name, bad)
    for command in ("info", "init"):
        said = cli(command, bucket, code=3)
        assert "credentials are not accepted" in said.stderr
        assert len(said.stderr.strip().splitlines()) == 1
        assert not any(secret in said.stderr + said.stdout for secret in (bad, *cloud.secrets))
    with pytest.raises(StorageError) as caught:
        open_store(bucket)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_read_only_credentials_read_and_are_told_what_they_may_not(
    bucket: str, cloud: S3Server | AzureServer, monkeypatch: pytest.MonkeyPatch, seal_meta: Callable[..., Ref]
) -> None:
    store = create_store(bucket, name="readable")
    ref = seal_meta(store)
    store.commit("S1", [ref])
    for name, value in cloud.environment("reader").items():
        monkeypatch.setenv(name, value)
    mine = open_store(bucket)
    assert mine.header(mine.slide("S1").find("meta"))["attrs"] == {"fields": {"patient": "A"}}
    assert verify(mine).ok
    with pytest.raises(StorageError, match="permission denied"):
        seal_meta(mine, patient="B")
    with pytest.raises(StorageError, match="permission denied"):
        mine.delete_slide("S1")


def test_a_bucket_that_is_not_there_is_named(cloud: S3Server | AzureServer, bucket: str) -> None:
    nowhere = f"{cloud.scheme}://nobody-made-this/store"
    with pytest.raises(StorageError, match=r"no such bucket.*(NoSuchBucket|ContainerNotFound)"):
        open_store(nowhere)
    with pytest.raises(NotFoundError, match="no store at"):
        open_store(bucket)
    with pytest.raises(StorageError, match=r"permission denied|no such bucket"):
        create_store(nowhere)


def test_a_place_with_something_in_it_is_not_made_a_store(bucket: str) -> None:
    open_objects(bucket).put("notes.txt", b"mine")
    with pytest.raises(ConflictError, match=r"not empty \(notes.txt"):
        create_store(bucket)
    create_store(f"{bucket}/below")
    with pytest.raises(ConflictError, match="is a store already"):
        create_store(f"{bucket}/below/")
    assert open_store(f"{bucket}/below").name == "below"


def test_a_server_that_ignores_put_if_absent_cannot_hold_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *a, mode=None, **k: real(*a, mode="overwrite", **k))
    with pytest.raises(StorageError, match="does not honour put-if-absent"):
        ObjectFiles(MemoryStore(), "s3://old-server/x").probe_publish()


def fill(writer: GroupWriter, rows: np.ndarray, shards: int) -> None:
    """Write some of the pending shards, as a writer that is killed then."""
    for shard in writer.pending("embedding")[:shards]:
        start, stop = writer._arrays["embedding"].shard_range(shard)
        writer.write_rows("embedding", shard, rows[start:stop])


def test_a_killed_writer_is_resumed_by_copying_what_it_finished_into_an_attempt_of_ones_own(
    bucket: str, begin_vectors: Callable[..., GroupWriter], vectors: np.ndarray
) -> None:
    store = create_store(bucket, name="resume")
    with begin_vectors(store) as dead:
        fill(dead, vectors, 3)
        left = {key: size for key, size, _ in store.files.walk(dead.prefix)}
    with begin_vectors(store) as writer:
        assert writer.resumed
        assert writer.attempt != dead.attempt
        assert writer.pending("embedding") == [3, 4, 5]
        fill(writer, vectors, 9)
        writer.put_array("status", np.zeros(len(vectors), np.uint8))
        ref = writer.seal(rows=len(vectors), attrs={})
    store.commit("S1", [ref])
    assert {key: size for key, size, _ in store.files.walk(dead.prefix)} == {
        k: v for k, v in left.items() if not k.endswith(LOCK)
    }
    assert np.array_equal(store.group(ref).read("embedding"), vectors)
    assert verify(store).ok


def test_gc_leaves_alone_what_is_being_written_or_young_by_the_servers_clock(
    bucket: str, begin_vectors: Callable[..., GroupWriter], vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create_store(bucket, name="running")
    with begin_vectors(store) as writer:
        fill(writer, vectors, 1)
        time.sleep(2)
        plan = plan_gc(store, grace_s=0)
        assert (plan.running, plan.items) == (1, ())
        assert [p.kind for p in verify(store).problems] == ["running"]
    fast = time.time() + 2 * 86400
    monkeypatch.setattr(time, "time", lambda: fast)  # this machine's clock is two days ahead
    assert plan_gc(store, grace_s=3600).young == 1
    plan = plan_gc(store, grace_s=0)
    assert (plan.running, [i.reason for i in plan.items]) == (0, ["abandoned"])
    assert [i.path for i in run_gc(plan).removed] == [writer.prefix]
    assert list(store.files.walk(writer.prefix)) == []


def test_a_lease_is_renewed_until_it_is_released(bucket: str) -> None:
    files = open_objects(bucket)
    lease = Lease(files, "a/LOCK", renew_s=0.05)
    files.delete("a/LOCK")
    until = time.monotonic() + 10
    while files.size("a/LOCK") is None:
        assert time.monotonic() < until
    lease.release()
    lease.release()
    assert files.size("a/LOCK") is None


def test_an_object_that_is_deleted_under_a_reader_is_missed_in_one_line(
    bucket: str, seal_vectors: Callable[..., Ref]
) -> None:
    store = create_store(bucket, name="gone")
    ref = seal_vectors(store)
    group = store.group(ref)
    for key, _, _ in store.files.walk(f"{ref.prefix}/zarr/embedding/c"):
        store.files.delete(key)
    with pytest.raises(HistostoreError, match=r"is missing; run `histostore verify`") as caught:
        group.read("embedding")
    assert "\n" not in str(caught.value)


def test_what_was_read_once_is_not_fetched_again_and_verify_looks_at_the_bucket(
    bucket: str,
    cloud: S3Server | AzureServer,
    monkeypatch: pytest.MonkeyPatch,
    seal_vectors: Callable[..., Ref],
    vectors: np.ndarray,
) -> None:
    store = create_store(bucket, name="cached")
    ref = seal_vectors(store)
    store.commit("S1", [ref])
    with faulty_proxy(cloud.port) as proxy:
        through(cloud, proxy.port, monkeypatch)
        counts = []
        for _ in range(2):
            before = proxy.requests["GET"]
            assert np.array_equal(open_store(bucket).group(ref).read("embedding"), vectors)
            counts.append(proxy.requests["GET"] - before)
        # of the second: the store's header and the group's, which are never kept
        assert counts[1] == 2 < counts[0]
        store.files.put(f"{ref.prefix}/zarr/embedding/c/1/0", b"damage")
        again = open_store(bucket)
        assert np.array_equal(again.group(ref).read("embedding"), vectors)
        assert not verify(again, deep=False).ok
        assert not verify(again).ok


def test_a_pickled_store_takes_its_address_along_and_no_credentials(bucket: str, cloud: S3Server | AzureServer) -> None:
    store = create_store(bucket, name="pickled")
    packed = pickle.dumps(store)
    for secret in cloud.secrets:
        assert secret.encode() not in packed
        assert secret not in repr(store) + repr(store.files)
    assert pickle.loads(packed).slides() == []
    assert store.uri == bucket
