"""Commands on workers: ``--workers N``, ``--scheduler URL`` and their certificates."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import show_stage
from histostore.cli.main import report
from histostore.errors import HistostoreError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from histostore.scale.run import Outcome

_ONLY_THERE = ("tls_ca", "tls_cert", "tls_key", "allow_plain_tcp", "gpu_per_worker")


def wants_workers(args: argparse.Namespace) -> bool:
    """Whether a command is to be spread over workers.

    Raises
    ------
    UsageError
        Options of workers were given without any.
    """
    if args.workers is not None or args.scheduler is not None:
        return True
    given = [name for name in _ONLY_THERE if getattr(args, name, None)]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} is for workers: give --workers or --scheduler too")
    return False


@contextmanager
def client_of(args: argparse.Namespace) -> Iterator[Any]:
    """Start the workers, or connect to the scheduler, that a command asks for."""
    try:
        from histostore.scale.cluster import Tls, scheduler_at, workers_here
    except ImportError as error:
        raise MissingDependencyError("workers need dask: pip install 'histostore[dask]'") from error
    files = [args.tls_ca, args.tls_cert, args.tls_key]
    if any(files) and not all(files):
        raise UsageError("give all of --tls-ca, --tls-cert and --tls-key, or none")
    tls = Tls(*map(Path, files)) if all(files) else None
    if args.scheduler is not None:
        with scheduler_at(args.scheduler, tls=tls, allow_plain_tcp=args.allow_plain_tcp) as client:
            yield client
    else:
        with workers_here(args.workers, gpu=getattr(args, "gpu_per_worker", False), tls=tls) as client:
            yield client


def show_each(outcomes: Iterable[Outcome], n: int, args: argparse.Namespace, *, then: Callable[[str], None]) -> int:
    """Print what came of each of `n` slides as it ends; `then` is called for each that went well.

    Returns
    -------
    int
        0, or the highest exit code of the failures.
    """
    worst, failed, done = 0, [], 0
    for slide, outcome in outcomes:
        try:
            if isinstance(outcome, HistostoreError):
                raise outcome
            for result in outcome:
                show_stage(result, args)
            then(slide)
            done += 1
        except HistostoreError as error:
            failed.append(slide)
            worst = max(worst, report(error, args, where=slide))
    if failed and n > 1:
        left = n - done - len(failed)
        others = [f"{k} {what}" for k, what in ((done, "done"), (left, "not tried")) if k]
        said = f"histostore: {len(failed)} of {n} slides failed: {', '.join(failed)}"
        print("; ".join([said, *others]), file=sys.stderr)
    return worst
