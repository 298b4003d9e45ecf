"""What a client may ask for, and how much of it at once."""

from __future__ import annotations

from dataclasses import dataclass

from histostore.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server; beyond them it answers 4xx, or 503 where waiting helps."""

    max_k: int = 1000
    max_dim: int = 16_384
    """Numbers in a query vector."""
    max_columns: int = 32
    max_queries: int = 64
    """Tiles or vectors in one request that are answered each by itself."""
    max_corners: int = 10_000
    """Corners of a polygon."""
    max_slides: int = 1000
    """Slides named in one query, or listed in one answer."""
    max_image_bytes: int = 4 << 20
    """An uploaded image's file, before base64."""
    max_image_px: int = 2048
    """An uploaded image's edge, checked before it is decoded."""
    max_thumbnail_px: int = 4096
    searches: int = 2
    """Searches at once."""
    reads: int = 4
    """Pictures and listings at once."""
    waiting: int = 128
    """Requests of either kind that wait for a turn; more are sent away with 503."""
    timeout_s: float = 30.0
    """From the last byte of the request to the answer."""
    body_s: float = 15.0
    """For a client to send its body."""
    refresh_s: float = 0.5
    """How old the server's view of the manifests may be; a search looks at them anew."""
    connections: int = 512

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, not positive")

    @property
    def max_body_bytes(self) -> int:
        """A request's body: the largest image in base64, and its JSON."""
        return self.max_image_bytes * 4 // 3 + (1 << 20)
