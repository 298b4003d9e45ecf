"""What the environment says of an Azure storage account, in each of the forms that Azure's own tools read.

obstore reads ``AZURE_STORAGE_ACCOUNT_NAME``, ``AZURE_STORAGE_ACCOUNT_KEY``, ``AZURE_STORAGE_SAS_TOKEN`` and the
identities by itself; the portal gives a connection string, and the ``az`` command has names of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
_NAMES = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_KEY")
_TOKENS = ("AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN")
_CHOICE = "AZURE_CREDENTIAL_TYPE"
_EMULATOR = "AZURE_STORAGE_USE_EMULATOR"
_EMULATOR_URL = "AZURITE_BLOB_STORAGE_URL"
_EMULATOR_ACCOUNT = "devstoreaccount1"
_PUBLIC = "core.windows.net"


def azure_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what obstore is to be told of the account: name, endpoint, and a key or a token where one is given.

    Variables go before the connection string, which is read only where none of them names an account. What is not in
    the answer (managed and workload identities, client secrets, the ``az`` command's login) obstore finds itself.

    Returns
    -------
    dict of str
        ``account_name`` and, where the environment says so, ``endpoint``, ``account_key``, ``sas_key``,
        ``credential_type``, ``use_emulator``. It may hold secrets: pass it on and show nothing of it.

    Raises
    ------
    UsageError
        No account is named, or the connection string is not one (it is not repeated).
    """
    if environment.get(_EMULATOR, "").lower() in ("1", "true", "yes", "on"):
        # obstore reads the emulator's address itself, and takes its well-known key
        return {"account_name": _first(environment, _NAMES) or _EMULATOR_ACCOUNT, "use_emulator": "true"}
    found = {
        "account_name": _first(environment, _NAMES),
        "endpoint": _first(environment, _ENDPOINTS),
        "account_key": _first(environment, _KEYS),
        "sas_key": _first(environment, _TOKENS),
    }
    if not found["account_name"] and (text := environment.get(CONNECTION_STRING)):
        found = parse_connection_string(text)
    if not found["account_name"]:
        raise UsageError(
            f"az:// needs a storage account: set {_NAMES[0]} and a key, a SAS token or an identity, "
            f"or {CONNECTION_STRING}"
        )
    if found.get("sas_key") and not found.get("account_key") and not environment.get(_CHOICE):
        found["credential_type"] = "sas_token"  # obstore would take a key's variable that is set to nothing for a key
    return {name: value for name, value in found.items() if value}


def azure_endpoint(settings: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> str:
    """Return where the account's blobs are, as `azure_settings` gives it; ``""`` for Azure's own address."""
    if settings.get("use_emulator"):
        return environment.get(_EMULATOR_URL) or "http://127.0.0.1:10000"
    return settings.get("endpoint", "")


def parse_connection_string(text: str) -> dict[str, str]:
    """Return what a connection string says: ``Name=value`` joined by ``;``, as the portal gives it.

    Raises
    ------
    UsageError
        It is not one, or it names no account. Nothing of it is repeated.
    """
    pairs = [part.partition("=") for part in text.strip().strip('"').split(";") if part.strip()]
    if not pairs or any(not equals for _, equals, _ in pairs):
        raise UsageError(f"{CONNECTION_STRING} is not Name=value;Name=value;…; copy it once more from the portal")
    said = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if said.get("usedevelopmentstorage", "").lower() == "true":
        return {"account_name": _EMULATOR_ACCOUNT, "use_emulator": "true"}
    endpoint = said.get("blobendpoint", "").rstrip("/")
    account = said.get("accountname", "") or (urlsplit(endpoint).hostname or "").partition(".")[0]
    suffix, protocol = said.get("endpointsuffix", _PUBLIC), said.get("defaultendpointsprotocol", "https").lower()
    if account and not endpoint and (suffix != _PUBLIC or protocol != "https"):
        endpoint = f"{protocol}://{account}.blob.{suffix}"
    if not account:
        raise UsageError(f"{CONNECTION_STRING} names no account (AccountName or BlobEndpoint); copy it once more")
    return {
        "account_name": account,
        "endpoint": endpoint,
        "account_key": said.get("accountkey", ""),
        "sas_key": said.get("sharedaccesssignature", "").removeprefix("?"),
    }


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")
