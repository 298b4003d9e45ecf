"""The store as users hold it: what `histostore.open` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, overload

from histostore.errors import UsageError
from histostore.store.store import Store as BaseStore
from histostore.store.store import create_store, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from distributed import Client

    from histostore.progress import Progress
    from histostore.store.gc import GcPlan, GcReport
    from histostore.store.repair import RepairReport
    from histostore.store.verify import VerifyReport
    from histostore.view import View

HOUR_S = 3600


class Store(BaseStore):
    """An open store. See `histostore.store.store.Store` for what it offers beside these.

    `view` reads a cohort, `info` says what there is, and `verify`, `repair` and `gc` look after its bytes.
    """

    __slots__ = ()

    @classmethod
    def of(cls, store: BaseStore) -> Self:
        """Return the same store with the user's methods."""
        return cls(store.files, store.name, store.uuid, store.format)

    def view(self, **options: Any) -> View:
        """Open a cohort: slides, embeddings, counts and labels joined by id. Options as in `histostore.view.view`."""
        from histostore.view import view

        return view(self, **options)

    def info(self, slide: str | None = None) -> dict[str, Any]:
        """Return what the store holds, or what it holds of one slide, as ``histostore info --json`` tells it.

        Keys as of `histostore.inventory.store_info` and `histostore.inventory.slide_info`.

        Raises
        ------
        NotFoundError
            There is no such slide; near names are suggested.
        """
        from histostore.inventory import slide_info, store_info

        return store_info(self) if slide is None else slide_info(self, slide)

    def verify(
        self,
        *,
        deep: bool = True,
        slides: str | Sequence[str] | None = None,
        client: Client | None = None,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Check every byte that was committed; damage is reported (``found.ok``, ``found.errors``), not raised.

        Parameters
        ----------
        deep
            Read all bytes: sha256 of every file, and every chunk against its checksum. Otherwise sizes alone are
            compared.
        slides
            Only these; everything by default.
        client
            Of a dask cluster: its workers read the bytes.

        Raises
        ------
        NotFoundError
            A slide that was asked for is not there.
        """
        chosen = [slides] if isinstance(slides, str) else slides
        if client is not None:
            from histostore.scale.run import verify_store  # brings dask.distributed

            return verify_store(client, self, deep=deep, slides=chosen, progress=progress)
        from histostore.store.verify import verify

        return verify(self, deep=deep, slides=chosen, progress=progress)

    def repair(self, *, imported: bool = False) -> RepairReport:
        """Check every byte, put damaged groups aside, and say which commands make them again (``done.commands``).

        Parameters
        ----------
        imported
            Also groups that came from files outside the store: they are lost to readers until those files are
            ingested again. Without it they are listed and left as they are.
        """
        from histostore.store.repair import repair
        from histostore.store.verify import verify

        return repair(self, verify(self), imported=imported)

    @overload
    def gc(
        self, *, run: Literal[False] = False, grace_h: float = 24.0, keep: int | None = None, erase: bool = False
    ) -> GcPlan: ...

    @overload
    def gc(
        self, *, run: Literal[True], grace_h: float = 24.0, keep: int | None = None, erase: bool = False
    ) -> GcReport: ...

    def gc(
        self, *, run: bool = False, grace_h: float = 24.0, keep: int | None = None, erase: bool = False
    ) -> GcPlan | GcReport:
        """Say what nothing names any more; with `run`, remove it.

        Parameters
        ----------
        run
            Remove it and return what is gone; without it nothing is removed, and the plan is returned.
        grace_h
            What was written in the last so many hours stays.
        keep
            Also versions before the newest so many of each slide, and what only they name; None keeps all history.
        erase
            With `run`, also the bytes of deleted slides. They cannot be brought back.

        Raises
        ------
        UsageError
            `grace_h` is negative, `keep` is below 1, or there is `erase` without `run`.
        """
        from histostore.store.gc import plan_gc, run_gc

        if erase and not run:
            raise UsageError("erase removes bytes of deleted slides, and nothing is removed without run: give run=True")
        plan = plan_gc(self, grace_s=grace_h * HOUR_S, keep_history=keep is None, keep_last=1 if keep is None else keep)
        return run_gc(plan, erase=erase) if run else plan

    def __repr__(self) -> str:
        return f"Store '{self.name}' at {self.uri} ({len(self.slides())} slides)"


def open(path: str | Path) -> Store:
    """Open a store.

    Raises
    ------
    NotFoundError
        There is no store at `path`.
    FormatError
        It is of a newer format.
    """
    return Store.of(open_store(path))


def create(path: str | Path, *, name: str | None = None) -> Store:
    """Make an empty store; its folder must not exist or be empty."""
    return Store.of(create_store(path, name=name))
