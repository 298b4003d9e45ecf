"""A slide in a bucket (``s3://``, ``gs://``, ``az://``), read in place by range requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.errors import MissingDependencyError, SlideError, StorageError
from histostore.store.object_address import Address

if TYPE_CHECKING:
    from collections.abc import Sequence


class ObjectRanges:
    """An object that is read by range; see `histostore.slides.ranges.Ranges`.

    Requests are coalesced, run side by side and are tried again as those of a store are (`histostore.store.objects`);
    credentials and endpoint come from the environment.

    Raises
    ------
    UsageError
        It is no address, or a setting in the environment is not one.
    SlideError
        There is no such object, or it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        address = Address.parse(uri)
        try:
            from histostore.store.objects import open_objects  # brings obstore, which files do without
        except ImportError as error:
            raise MissingDependencyError(f"{address} needs obstore: pip install 'histostore[s3]'") from error
        folder, _, self._key = address.prefix.rpartition("/")
        self.uri = str(address)
        self._files = open_objects(str(Address(address.scheme, address.bucket, folder)))
        try:
            found = self._files.state(self._key) if self._key else None
        except StorageError as error:
            raise SlideError(str(error)) from error
        if found is None:
            raise SlideError(f"{self.uri}: no such object")
        self.size, self.version = found

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Return one piece per range; see `histostore.slides.ranges.Ranges`."""
        fitting = [(at, max(0, min(n, self.size - at))) for at, n in zip(offsets, lengths, strict=True)]
        try:
            found = [bytes(piece) for piece in self._files.read_ranges(self._key, fitting)]
            now = self._files.state(self._key)
        except FileNotFoundError:
            raise SlideError(f"{self.uri} was deleted while it was read") from None
        except StorageError as error:
            raise SlideError(str(error)) from error
        cut = any(len(piece) != n for piece, (_, n) in zip(found, fitting, strict=True))
        if cut or now != (self.size, self.version):
            raise SlideError(f"{self.uri} changed while it was read; open it again")
        return found

    def close(self) -> None:
        """Do nothing: connections close by themselves."""
