"""Tile, embed and index a store by jobs of a queue: SLURM, or processes of this machine through the same machinery.

A scheduler runs in this process, each job is one dask worker, and everything between them is TLS with an authority of
your own (docs/cluster.md, "Certificates"). The bytes are those of a serial run. A worker that dies is started again
within its job; of a job that ends (walltime, a dead node) the task goes to another one, and dask-jobqueue submits no
job in its place. The same command goes on after anything.

    python pipelines/cluster.py S --queue slurm --jobs 8 --partition gpu --gpu --backbone resnet50 --interface ib0
    python pipelines/cluster.py S --queue slurm --partition gpu --gpu --show-job      # what sbatch would be given
    python pipelines/cluster.py S --queue local --jobs 2 --backbone testing           # no queue needed

It runs where it was typed until all is done: on a login node, in tmux. For another queue put its class of dask-jobqueue
(PBSCluster, SGECluster, LSFCluster …) beside SLURMCluster in `cluster_of`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.local import LocalCluster
from distributed import Client

import histostore as hs
from histostore.cli.progress import Line
from histostore.errors import HistostoreError
from histostore.scale.cluster import LOOPBACK, SETTINGS, Tls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dask_jobqueue.core import JobQueueCluster

ENVIRONMENT = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    # else buffers of more than 64 KiB go back to the kernel each time: a quarter of the time of tiling
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""Of every worker."""
QUIET = ["--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0"]
"""dask listens for http whatever it is told, on all interfaces unless it is given an address."""


def cluster_of(args: argparse.Namespace) -> JobQueueCluster:
    """Return a scheduler in this process that submits jobs; none is submitted yet."""
    tls = Tls(*(args.certificates.resolve() / f"{part}.pem" for part in ("ca", "cert", "key")))
    worker = ["--memory-limit", "0", *QUIET]  # mapped files count as memory for dask: it would pause workers
    if args.gpu:
        worker += ["--resources", "GPU=1"]
    common: dict[str, Any] = {
        "cores": 1, "processes": 1, "memory": args.memory,  # one task at a time
        "protocol": "tls://", "security": tls.security(), "log_directory": args.logs, "job_name": "histostore",
    }  # fmt: skip
    scheduler: dict[str, Any] = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
    if args.queue == "local":
        os.environ.update(ENVIRONMENT)  # these jobs are no shell scripts: they have what this process has
        return LocalCluster(
            worker_extra_args=[*worker, "--host", LOOPBACK], scheduler_options=scheduler | {"host": LOOPBACK}, **common
        )
    return SLURMCluster(
        queue=args.partition,
        account=args.account,
        walltime=args.walltime,
        job_cpu=args.cpus,
        job_extra_directives=["--gres=gpu:1"] if args.gpu else [],
        job_script_prologue=[f"export {name}={value}" for name, value in ENVIRONMENT.items()],
        interface=args.interface,
        worker_extra_args=worker,
        scheduler_options=scheduler,
        **common,
    )


def stages(store: hs.Store, client: Client, args: argparse.Namespace) -> None:
    """Tile and embed on the workers; the index is one pass of FAISS in this process."""
    at = hs.TileSpec.at_spots if args.at == "spots" else hs.TileSpec.grid
    pixels, rows = hs.PixelSpec(shard_tiles=args.shard), hs.EmbeddingSpec(shard_rows=args.shard, chunk_rows=args.shard)
    how: dict[str, Any] = {"client": client, "progress": Line(), "read_threads": args.cpus}
    for tiled in hs.pp.tile(store, at(px=args.px, mpp=args.mpp), pixels=pixels, **how):
        print(f"{tiled.slide}: tile {tiled.done}, {tiled.rows:,} tiles")  # noqa: T201
    for embedded in hs.tl.embed(store, args.backbone, spec=rows, gpu=args.gpu, **how):
        print(f"{embedded.slide}: embed {embedded.done}, {embedded.rows:,} rows")  # noqa: T201
    index = hs.tl.index(store, args.backbone)
    print(f"index: {index.rows:,} rows, {', '.join(index.segments)}")  # noqa: T201


def options() -> argparse.ArgumentParser:
    """Return the parser."""
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    p.add_argument("store", help="its path or address as every node sees it")
    p.add_argument("--queue", choices=("slurm", "local"), default="slurm")
    p.add_argument("--jobs", type=int, default=2, metavar="N", help="workers, each a job (default 2)")
    p.add_argument("--certificates", type=Path, default=Path(), metavar="DIR", help="ca.pem, cert.pem, key.pem (here)")
    p.add_argument("--show-job", action="store_true", help="print the script of a job and end")
    job = p.add_argument_group("a job")
    job.add_argument("--partition", metavar="P", help="of SLURM")
    job.add_argument("--account", metavar="A", help="of SLURM")
    job.add_argument("--walltime", default="08:00:00", metavar="T")
    job.add_argument("--memory", default="16GiB", metavar="SIZE")
    job.add_argument("--cpus", type=int, default=1, metavar="N", help="threads that read and decode (default 1)")
    job.add_argument("--gpu", action="store_true", help="one GPU for each job")
    job.add_argument("--interface", metavar="NAME", help="network of the nodes, as ib0")
    job.add_argument("--logs", metavar="DIR", help="where SLURM writes what jobs print")
    stage = p.add_argument_group("stages")
    stage.add_argument("--at", choices=("grid", "spots"), default="grid")
    stage.add_argument("--px", type=int, default=224)
    stage.add_argument("--mpp", type=lambda text: text if text == "native" else float(text), default="native")
    stage.add_argument("--shard", type=int, metavar="N", help="tiles per task (chosen by size)")
    stage.add_argument("--backbone", default="resnet50")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; return 0, or the exit code of what went wrong."""
    args = options().parse_args(argv)
    try:
        with (
            dask.config.set(SETTINGS),
            cluster_of(args) as cluster,
        ):
            if args.show_job:
                print(cluster.job_script())  # noqa: T201
                return 0
            store = hs.open(args.store)
            cluster.scale(jobs=args.jobs)
            with Client(cluster, security=cluster.security) as client:
                print(f"waiting for the first of {args.jobs} jobs of the queue", file=sys.stderr)  # noqa: T201
                client.wait_for_workers(1)
                stages(store, client, args)
    except HistostoreError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
