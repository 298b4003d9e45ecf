"""Commands on workers: ``--workers N``, ``--scheduler URL`` and their certificates."""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import Failures, show_stage
from histostore.errors import HistostoreError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Iterator

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


def show_each(
    outcomes: Generator[Outcome], n: int, args: argparse.Namespace, *, then: Callable[[str], None] = lambda _slide: None
) -> int:
    """Print what came of each of `n` slides as it ends; `then` is called for each that went well.

    The rest is given up where the same would be said of them (see `Failures`).

    Returns
    -------
    int
        0, or the highest exit code of the failures.
    """
    failures = Failures(n, args)
    with closing(outcomes):
        for slide, outcome in outcomes:
            try:
                if isinstance(outcome, HistostoreError):
                    raise outcome
                for result in outcome:
                    show_stage(result, args)
                then(slide)
                failures.passed()
            except HistostoreError as error:
                failures.add(slide, error)
                if failures.alike:
                    break
    return failures.exit_code()
