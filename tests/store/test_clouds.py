"""What is Azure's and Google's own, on real servers (`make clouds`). All else of Azure is in the tests of `bucket`."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore.errors import StorageError, UsageError
from histostore.store.objects import open_objects
from histostore.store.store import create_store, open_store
from histostore.store.verify import verify
from histostore.testing.azure import ACCOUNT, ACCOUNT_KEY, running_azure
from histostore.testing.faults import faulty_proxy
from histostore.testing.gcs import running_gcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.testing.azure import AzureServer
    from histostore.testing.gcs import GcsServer

pytestmark = pytest.mark.clouds
GOLDEN = Path(__file__).parents[2] / "stores" / "golden" / "v1"


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with running_azure(tmp_path_factory.mktemp("az") / "server") as server:
        yield server


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    with running_gcs(tmp_path_factory.mktemp("gs") / "server") as server:
        yield server


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HISTOSTORE_OBJECT_TIMEOUT", "5")


def lead(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def at(server: AzureServer, tmp_path: Path) -> str:
    return f"az://{server.bucket}/{tmp_path.name}"


def test_a_sas_token_writes_resumes_and_deletes(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seal_vectors: Callable[..., Ref],
    begin_vectors: Callable[..., GroupWriter], vectors: np.ndarray,
) -> None:  # fmt: skip
    lead(azure.environment("token"), monkeypatch)
    store = create_store(at(azure, tmp_path), name="token")
    with begin_vectors(store) as dead:
        for shard in dead.pending("embedding")[:2]:
            dead.write_rows("embedding", shard, vectors[4 * shard : 4 * shard + 4])
    ref = seal_vectors(store)  # takes the two shards over: a copy inside the container
    store.commit("S1", [ref])
    assert np.array_equal(store.group(ref).read("embedding"), vectors)
    assert verify(store).ok
    store.delete_slide("S1")
    store.files.delete_tree("")
    assert list(store.files.walk("")) == []


@pytest.mark.parametrize("sas", [False, True])
def test_a_connection_string_is_all_that_is_needed(
    sas: bool, azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"SharedAccessSignature={azure.sas('racwdl')}" if sas else f"AccountKey={ACCOUNT_KEY}"
    text = f"AccountName={ACCOUNT};{secret};BlobEndpoint=http://127.0.0.1:{azure.port}/{ACCOUNT};"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    with pytest.raises(UsageError, match="AZURE_ALLOW_HTTP=true") as caught:
        open_objects(at(azure, tmp_path))
    assert ACCOUNT_KEY not in str(caught.value)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    create_store(at(azure, tmp_path), name="by-string")
    assert open_store(at(azure, tmp_path)).name == "by-string"


def test_the_emulator_is_found_by_its_own_variables(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{azure.port}")
    assert open_objects(at(azure, tmp_path)).put_new("key", b"mine")


def test_a_token_that_has_ended_and_a_connection_string_with_another_key_are_refused_and_never_printed(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    token = azure.sas("racwdl", lasts=-timedelta(hours=1))
    lead(azure.environment("token") | {"AZURE_STORAGE_SAS_TOKEN": token}, monkeypatch)
    said = [cli(command, at(azure, tmp_path), code=3).stderr for command in ("info", "init")]
    bad = "bm90L3RoZStrZXk9b2YtYW55b25l"
    for name in azure.environment("token"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    text = f"AccountName={ACCOUNT};AccountKey={bad};BlobEndpoint=http://127.0.0.1:{azure.port}/{ACCOUNT}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    said += [cli(command, at(azure, tmp_path), code=3).stderr for command in ("info", "init")]
    for line in said:
        assert "credentials are not accepted" in line
        assert len(line.strip().splitlines()) == 1
        assert not any(secret in line for secret in (token[-20:], bad, "sig=", "AccountKey", *azure.secrets))


def test_no_key_nor_token_is_written_into_a_store(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seal_vectors: Callable[..., Ref], caplog: Any
) -> None:
    token = azure.environment("token")
    lead(token, monkeypatch)
    store = create_store(at(azure, tmp_path), name="written")
    store.commit("S1", [seal_vectors(store)])
    written = b"".join(store.files.get(key) for key, _, _ in store.files.walk(""))
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    for secret in (ACCOUNT_KEY, "sig=", token["AZURE_STORAGE_SAS_TOKEN"][-20:], token["AZURE_STORAGE_ENDPOINT"]):
        assert secret.encode() not in written + kept
        assert secret not in caplog.text


def test_deleting_goes_on_past_keys_that_are_gone_already(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(azure.environment(), monkeypatch)
    files = open_objects(at(azure, tmp_path))
    keys = [f"a/{n:03}" for n in range(300)]  # more than one of Azure's batches
    for key in keys[1:]:
        files.put(key, b"")
    files._delete(keys)
    assert list(files.walk("")) == []
    for key in keys[:5]:
        files.put(key, b"")
    with faulty_proxy(azure.port) as proxy:  # the answer to the deleting is lost: all is gone when it is asked again
        lead(azure.environment(port=proxy.port), monkeypatch)
        proxy.lose_next = "POST"
        open_objects(at(azure, tmp_path)).delete_tree("a")
        assert proxy.faults == {"lost POST": 1}
    assert list(files.walk("")) == []


def test_a_key_that_is_taken_is_told_without_asking_again(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(azure.port) as proxy:
        lead(azure.environment(port=proxy.port), monkeypatch)
        files = open_objects(at(azure, tmp_path))
        assert files.put_new("key", b"mine")
        assert not files.put_new("key", b"yours")
        assert proxy.requests["PUT"] == 2


def test_two_accounts_with_containers_of_one_name_share_no_cache(
    azure: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead(azure.environment(), monkeypatch)
    mine = open_objects(at(azure, tmp_path))
    mine.put("a/b", b"mine")
    mine.pin("a", {"b": (4, "")})
    assert mine.get("a/b") == b"mine"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    theirs = open_objects(at(azure, tmp_path))
    theirs.pin("a", {"b": (4, "")})
    with pytest.raises(StorageError):
        theirs.get("a/b")


def test_a_store_behind_gs_is_listed_read_and_verified(
    gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    local = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    uri = f"gs://{gcs.bucket}/read"
    assert gcs.upload(local, "read") > 20
    monkeypatch.setenv("GOOGLE_BASE_URL", gcs.environment()["GOOGLE_BASE_URL"])
    with pytest.raises(UsageError, match="GOOGLE_ALLOW_HTTP=true"):
        open_objects(uri)
    lead(gcs.environment(), monkeypatch)
    here, there = open_store(local), open_store(uri)
    assert there.slides() == here.slides()
    assert verify(there).ok
    for owner in here.owners():
        for key, ref in here.manifest(owner).entries.items():
            assert there.header(there.manifest(owner).entries[key]) == here.header(ref)
    files = open_objects(uri)
    assert sorted((k, n) for k, n, _ in files.walk("")) == sorted((k, n) for k, n, _ in here.files.walk(""))
    assert files.get("STORE.json") == here.files.get("STORE.json")
    assert files.read_ranges("STORE.json", [(2, 5), (10**6, 3)]) == here.files.read_ranges(
        "STORE.json", [(2, 5), (10**6, 3)]
    )
    assert files.size("none") is None
    cli("info", uri)
    gone = next(key for key, _, _ in files.walk(""))
    files._delete([f"{gone}-before", gone])
    assert files.size(gone) is None
    files.delete_tree("")
    assert list(files.walk("")) == []


def test_a_server_of_gs_that_takes_no_writes_is_refused_in_one_line(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    lead(gcs.environment(), monkeypatch)
    said = cli("init", f"gs://{gcs.bucket}/write", code=3)
    assert "refused the request (status 400)" in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1
