"""The SQLite file of the catalog: rows that are believed only where their checksum holds.

It is derived, so it is never repaired: a file that is not wholly what this version writes is made anew, a row that does
not hold is read again from the manifests. It is not fsynced, and nobody waits for it: what cannot be read or written
now (a read-only disk, another process at it) is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from histostore.store.disk import PARTIAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SCHEMA = 2
"""Of the file; a file of any other one is made anew."""
_APPLICATION = 0x48495354
TABLES = ("owners", "contents")
_CREATE = tuple(f"CREATE TABLE {t} (owner TEXT PRIMARY KEY, row TEXT, checksum BLOB) WITHOUT ROWID" for t in TABLES)
_READ_WAIT_S, _WRITE_WAIT_S = 0.25, 0.05
_MANY = 4
"""A file with more than so many times the rows there can be is damaged."""


@dataclass(slots=True)
class CatalogFile:
    """Rows of text by owner, in two tables: what listings need, and the rest."""

    path: Path
    uuid: str
    """Of the store: a row of another one does not hold."""
    problem: str = ""
    """Why the file, or rows of it, cannot be believed; empty where all is well or there is no file."""

    def read(self, tables: Sequence[str], most: int) -> dict[str, dict[str, str]]:
        """Return the rows of some tables as they are at one moment, by owner; none where the file does not hold.

        Parameters
        ----------
        most
            How many owners there are now.
        """
        nothing: dict[str, dict[str, str]] = {table: {} for table in tables}
        try:
            if not self.path.exists():
                return nothing
            with closing(self._connect("ro", _READ_WAIT_S)) as database:
                database.execute("BEGIN")
                if (why := self._strange(database)) is not None:
                    return self._refuse(why, nothing)
                limit = _MANY * most + 1000
                found = {
                    table: database.execute(f"SELECT owner, row, checksum FROM {table} LIMIT {limit}").fetchall()
                    for table in tables
                }
        except OSError:
            return nothing
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "unable to open" in str(error) or "readonly" in str(error):
                return nothing  # another process is at it, or we may not read it: done without
            return self._refuse(str(error), nothing)
        except sqlite3.DatabaseError as error:
            return self._refuse(str(error), nothing)
        return {table: self._believed(table, rows) for table, rows in found.items()}

    def write(self, rows: Mapping[str, Mapping[str, str]], gone: Sequence[str], *, whole: bool = False) -> bool:
        """Put rows, by table and owner, and drop those of owners that are gone; return whether it was done.

        `whole` says that `rows` are all there are: the file is replaced.
        """
        try:
            if whole or not self.path.exists():
                self._replace(rows)
            else:
                with closing(self._connect("rw", _WRITE_WAIT_S)) as database:
                    database.execute("BEGIN IMMEDIATE")
                    self._put(database, rows)
                    for table in TABLES:
                        database.executemany(f"DELETE FROM {table} WHERE owner = ?", [(owner,) for owner in gone])
                    database.execute("COMMIT")
        except (sqlite3.Error, OSError):
            return False
        return True

    def _connect(self, mode: str, wait_s: float) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path))}?mode={mode}"
        database = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None)
        database.text_factory = bytes
        try:
            for setting in ("trusted_schema=OFF", "cell_size_check=ON", "synchronous=OFF", "mmap_size=0"):
                database.execute(f"PRAGMA {setting}")
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _strange(self, database: sqlite3.Connection) -> str | None:
        """Return what tells a file from one that this version wrote."""
        for pragma, wanted in (("application_id", _APPLICATION), ("user_version", SCHEMA)):
            if (got := database.execute(f"PRAGMA {pragma}").fetchone()[0]) != wanted:
                return f"{pragma} {got}, not {wanted}"
        made = {row[0] for row in database.execute("SELECT sql FROM sqlite_master LIMIT 10")}
        return None if made == {sql.encode() for sql in _CREATE} else "other tables than ours"

    def _refuse(self, why: str, nothing: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        self.problem = f"the catalog cannot be believed ({why}) and is made anew"
        return nothing

    def _believed(self, table: str, rows: list[tuple[object, object, object]]) -> dict[str, str]:
        good: dict[str, str] = {}
        for owner, row, checksum in rows:
            if isinstance(owner, bytes) and isinstance(row, bytes) and checksum == self._checksum(table, owner, row):
                good[owner.decode()] = row.decode()
        if bad := len(rows) - len(good):
            self.problem = f"{bad} rows of the catalog are damaged, or of another store, and are made anew"
        return good

    def _checksum(self, table: str, owner: bytes, row: bytes) -> bytes:
        return hashlib.blake2b(b"\0".join((self.uuid.encode(), table.encode(), owner, row)), digest_size=16).digest()

    def _put(self, database: sqlite3.Connection, rows: Mapping[str, Mapping[str, str]]) -> None:
        for table, mine in rows.items():
            values = [(o, r, self._checksum(table, o.encode(), r.encode())) for o, r in sorted(mine.items())]
            database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", values)

    def _replace(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        """Write a new file beside the old one and let it take its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
        try:
            with closing(sqlite3.connect(beside, isolation_level=None)) as database:
                for pragma in ("journal_mode=OFF", "synchronous=OFF"):
                    database.execute(f"PRAGMA {pragma}")
                database.execute(f"PRAGMA application_id={_APPLICATION}")
                database.execute(f"PRAGMA user_version={SCHEMA}")
                database.execute("BEGIN")
                for sql in _CREATE:
                    database.execute(sql)
                self._put(database, rows)
                database.execute("COMMIT")
            for journal in ("-journal", "-wal", "-shm"):  # of the old file: it would be rolled back into the new one
                self.path.with_name(f"{self.path.name}{journal}").unlink(missing_ok=True)
            beside.replace(self.path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
