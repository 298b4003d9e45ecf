"""An Azure account is found in each form that Azure's own tools read, and what cannot be used is not repeated."""

from __future__ import annotations

import pytest

from histostore.errors import UsageError
from histostore.store.azure_account import azure_endpoint, azure_settings, parse_connection_string
from histostore.store.object_address import Address, endpoint, identity_of
from histostore.store.objects import open_objects

KEY = "aHVudGVyMg=="
VARIABLES = [
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT", "AZURE_STORAGE_USE_EMULATOR", "AZURE_ALLOW_HTTP", "GOOGLE_BASE_URL", "GOOGLE_ALLOW_HTTP",
    "AZURE_STORAGE_ACCOUNT_KEY",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


FOUND: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "obstore's names": (
        {"AZURE_STORAGE_ACCOUNT_NAME": "lab", "AZURE_STORAGE_ACCOUNT_KEY": KEY},
        {"account_name": "lab", "account_key": KEY},
    ),
    "names of the az command": (
        {"AZURE_STORAGE_ACCOUNT": "lab", "AZURE_STORAGE_KEY": KEY},
        {"account_name": "lab", "account_key": KEY},
    ),
    "an identity": ({"AZURE_STORAGE_ACCOUNT_NAME": "lab"}, {"account_name": "lab"}),
    "a token beside an empty key": (
        {"AZURE_STORAGE_ACCOUNT_NAME": "lab", "AZURE_STORAGE_SAS_TOKEN": "sig=x", "AZURE_STORAGE_ACCOUNT_KEY": ""},
        {"account_name": "lab", "sas_key": "sig=x", "credential_type": "sas_token"},
    ),
    "a token and a type of one's own": (
        {"AZURE_STORAGE_ACCOUNT_NAME": "lab", "AZURE_STORAGE_SAS_TOKEN": "sig=x", "AZURE_CREDENTIAL_TYPE": "azure_cli"},
        {"account_name": "lab", "sas_key": "sig=x"},
    ),
    "a string of the portal": (
        {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=lab;"
            f"AccountKey={KEY};EndpointSuffix=core.windows.net"
        },
        {"account_name": "lab", "account_key": KEY},
    ),
    "a string of another cloud": (
        {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=lab;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn"},
        {"account_name": "lab", "account_key": KEY, "endpoint": "https://lab.blob.core.chinacloudapi.cn"},
    ),
    "a string with a token alone": (
        {
            "AZURE_STORAGE_CONNECTION_STRING": '"BlobEndpoint=https://lab.blob.core.windows.net/;'
            'SharedAccessSignature=?sp=r&sig=x%3D"'
        },
        {
            "account_name": "lab",
            "sas_key": "sp=r&sig=x%3D",
            "endpoint": "https://lab.blob.core.windows.net",
            "credential_type": "sas_token",
        },
    ),
    "variables before a string": (
        {"AZURE_STORAGE_ACCOUNT_NAME": "lab", "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=other;AccountKey={KEY}"},
        {"account_name": "lab"},
    ),
    "the emulator": (
        {"AZURE_STORAGE_USE_EMULATOR": "true"},
        {"account_name": "devstoreaccount1", "use_emulator": "true"},
    ),
    "the emulator, by a string": (
        {"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true"},
        {"account_name": "devstoreaccount1", "use_emulator": "true"},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_an_account_is_found(name: str) -> None:
    environment, expected = FOUND[name]
    assert azure_settings(environment) == expected


def test_the_emulator_listens_here_unless_its_variable_says_otherwise() -> None:
    settings = azure_settings({"AZURE_STORAGE_USE_EMULATOR": "1"})
    assert azure_endpoint(settings, {}) == "http://127.0.0.1:10000"
    assert azure_endpoint(settings, {"AZURITE_BLOB_STORAGE_URL": "http://127.0.0.1:9"}) == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "text", ["hunter2", "AccountKey=hunter2", "AccountName=x;hunter2", ";", "BlobEndpoint=hunter2"]
)
def test_what_is_no_connection_string_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="AZURE_STORAGE_CONNECTION_STRING") as caught:
        parse_connection_string(text)
    assert "hunter2" not in str(caught.value)


def test_an_address_without_an_account_says_what_to_set() -> None:
    with pytest.raises(UsageError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        open_objects("az://container/store")


def test_a_key_that_is_none_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lab")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter2 is not base64")
    with pytest.raises(UsageError, match="check them one by one") as caught:
        open_objects("az://container/store")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("uri", "name", "allow"),
    [
        ("az://c/x", "AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP"),
        ("gs://bucket/x", "GOOGLE_BASE_URL", "GOOGLE_ALLOW_HTTP"),
    ],
)
def test_plain_http_and_keys_in_an_endpoint_are_refused(
    uri: str, name: str, allow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address.parse(uri.replace("//c/", "//container/"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lab")
    assert endpoint(address) == ""
    monkeypatch.setenv(name, "http://host:1")
    with pytest.raises(UsageError, match=f"{allow}=true"):
        endpoint(address)
    monkeypatch.setenv(allow, "true")
    assert endpoint(address) == "http://host:1"
    monkeypatch.setenv(name, "https://host/?sig=hunter2")
    with pytest.raises(UsageError, match="must hold no keys") as caught:
        endpoint(address)
    assert "hunter2" not in str(caught.value)


def test_the_same_container_of_another_account_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for account in ("lab", "clinic"):
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", account)
        found.add(identity_of(Address.parse("az://container/store")))
    assert len(found) == 2
