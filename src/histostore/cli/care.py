"""The commands that look after stores: verify, gc, delete, doctor, models."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import names, show, the_store
from histostore.cli.progress import Line
from histostore.cli.workers import client_of, wants_workers

if TYPE_CHECKING:
    import argparse

    from histostore.store.gc import GcReport
    from histostore.store.store import Store

EXIT_DAMAGED = 3
_GC_LINE = "{:<24} {:<12} {:<12} {:>9} {:>12}"
_LIBRARIES = (
    "numpy", "zarr", "anndata", "scanpy", "torch", "torchvision", "timm", "openslide-python", "openslide-bin",
    "tifffile", "imagecodecs", "scikit-learn", "faiss-cpu", "faiss-gpu", "obstore",
)  # fmt: skip


def verify(args: argparse.Namespace) -> int:
    """Check every committed byte."""
    from histostore.store.verify import verify as run

    store = the_store(args)
    if wants_workers(args):
        with client_of(args) as client:
            from histostore.scale.run import verify_store

            found = verify_store(
                client, store, deep=not args.quick, slides=names(args.slides), progress=Line()
            )  # fmt: skip
    else:
        found = run(store, deep=not args.quick, slides=names(args.slides))
    problems = [
        {"severity": p.severity, "kind": p.kind, "owner": p.owner, "path": p.path, "text": p.text}
        for p in found.problems
    ]
    lines = [f"{p['severity']}: {p['path']}: {p['text']}" for p in problems]
    checked = ", ".join(f"{n:,} {what}" for what, n in found.counts.items())
    lines.append(f"{'all is well' if found.ok else f'{len(found.errors)} errors'}: checked {checked}")
    if not found.ok:
        lines.append(f"next: histostore repair {args.store}")
    show({"ok": found.ok, "counts": dict(found.counts), "problems": problems}, "\n".join(lines), args)
    return 0 if found.ok else EXIT_DAMAGED


def repair(args: argparse.Namespace) -> int:
    """Put damaged groups aside."""
    from histostore.store.repair import repair as run
    from histostore.store.verify import verify as check

    store = the_store(args, writing=True)
    found = check(store)
    done = run(store, found, imported=args.imported)
    lines = [
        f"{r.ref.owner} {r.ref.key}: {'put aside' if r.quarantined else 'left (imported; --imported puts it aside)'}"
        for r in done.redo
    ]
    lines += [f"beyond repair: {text}" for text in done.beyond]
    lines += [f"next: histostore {command} {args.store} …" for command in done.commands]
    value = {
        "redo": [{"slide": r.ref.owner, "group": r.ref.key, "command": r.command, "quarantined": r.quarantined}
                 for r in done.redo],
        "beyond": list(done.beyond),
    }  # fmt: skip
    show(value, "\n".join(lines) or "nothing is damaged", args)
    return EXIT_DAMAGED if done.beyond else 0


def gc(args: argparse.Namespace) -> None:
    """List or remove what nothing names."""
    from histostore.store.gc import plan_gc, run_gc

    store = the_store(args, writing=args.run)
    history = args.history or args.keep is not None
    plan = plan_gc(store, grace_s=args.grace * 3600, keep_history=not history, keep_last=args.keep or 1)
    rows: list[dict[str, Any]] = [
        {"slide": owner, "kind": kind, "reason": reason, "files": files, "bytes": size}
        for (owner, kind, reason), (files, size) in plan.by_group().items()
    ]
    lines = [_GC_LINE.format("slide", "kind", "why", "files", "MB")] if rows else []
    lines += [
        _GC_LINE.format(r["slide"] or "-", r["kind"], r["reason"], f"{r['files']:,}", f"{r['bytes'] / 1e6:,.1f}")
        for r in rows
    ]
    if args.paths:
        lines += [f"{i.reason:<12} {i.files:>6} files {i.bytes / 1e6:>10.1f} MB  {i.path}" for i in plan.items]
    lines += [f"left alone: {owner}: {why}" for owner, why in plan.left.items()]
    lines.append(
        f"{plan.files:,} files, {plan.bytes / 1e6:,.1f} MB may go; {plan.running} being written, "
        f"{plan.young} younger than {args.grace:g} h"
    )
    if not args.erase and any(r["reason"] == "deleted" for r in rows):
        lines.append("what was deleted goes only with --erase --run, and cannot be brought back")
    removed = None
    if args.run:
        done = run_gc(plan, erase=args.erase)
        removed = {"files": done.files, "bytes": done.bytes, "kept": len(done.kept)}
        lines.append(f"removed {done.files:,} of {plan.files:,} files, {done.bytes / 1e6:,.1f} MB{_stayed(done)}")
    elif plan.items:
        lines.append("nothing was removed; add --run to remove it")
    planned = {why: {"files": n, "bytes": size} for why, (n, size) in plan.by_reason().items()}
    show({"planned": planned, "groups": rows, "removed": removed}, "\n".join(lines), args)


def _stayed(done: GcReport) -> str:
    """Say what was planned and is still there."""
    deleted = sum(i.files for i in done.kept if i.reason == "deleted")
    other = sum(i.files for i in done.kept) - deleted
    text = f"; {deleted:,} files of deleted slides stay until --erase --run" if deleted else ""
    return f"{text}; {other:,} files stay, wanted again or in use by now" if other else text


def delete(args: argparse.Namespace) -> None:
    """Hide a slide."""
    store = the_store(args, writing=True)
    store.delete_slide(args.slide)
    heads = [r.name for r in store.manifest("@heads").of_kind("heads")
             if args.slide in store.header(r)["attrs"].get("trained_on", {})]  # fmt: skip
    told = f"; heads now stale: {', '.join(heads)}" if heads else ""
    text = f"slide '{args.slide}' is hidden; its bytes stay until `histostore gc {args.store} --erase --run`{told}"
    show({"deleted": args.slide, "stale_heads": heads}, text, args)


def doctor(args: argparse.Namespace) -> int:
    """Check this machine and a store's file system."""
    from histostore._version import __version__
    from histostore.store.files import LocalFiles
    from histostore.store.object_address import is_object_address
    from histostore.store.store import HEADER, open_store

    found: dict[str, str] = {"histostore": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "-"
    from histostore.index.engine import which_faiss

    faiss = which_faiss()
    found["faiss"] = f"{faiss.version or '-'} ({faiss.options or 'not loaded'}; {faiss.gpus} GPUs)"
    problems = [faiss.problem] if faiss.problem is not None else []
    found["device"] = _device()
    if args.store is not None and is_object_address(args.store):
        found |= _store_health(open_store(args.store))
        found["publish"] = "put if absent"
    elif args.store is not None:
        folder = Path(args.store)
        if (folder / HEADER).exists():
            found |= _store_health(open_store(folder))
        elif not folder.exists():
            folder = folder.parent
        found["publish"] = LocalFiles(folder).probe_publish()
    lines = [f"{key:<18} {value}" for key, value in found.items()] + [f"problem: {p}" for p in problems]
    show({**found, "problems": problems}, "\n".join(lines), args)
    return EXIT_DAMAGED if problems else 0


def _store_health(store: Store) -> dict[str, str]:
    """Say what a store is and how its catalog is; a damaged catalog is made anew by looking at it."""
    from histostore.store.catalog import look, worth_it

    catalog = look(store, keep=worth_it(store))
    kept = f"{len(catalog.owners):,} owners, {catalog.refreshed:,} read again" if catalog.kept else "none kept"
    if catalog.problem:
        kept += f"; {catalog.problem}"
    about = f"'{store.name}', format {store.format}, {len(catalog.slides())} slides"
    return {"store": about, "catalog": kept}


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    return f"cpu, {torch.get_num_threads()} threads"


def models(args: argparse.Namespace) -> None:
    """List backbones."""
    from histostore.backbones.catalog import availability, known

    records = [(r, availability(r)) for r in known()]
    used = _used(args) if args.store is not None else {}
    value = {
        "models": [
            {"name": r.name, "source": r.source, "dim": r.dim, "input_px": r.input_px, "mpp": r.mpp,
             "licence": r.licence, "gated": r.gated, "available": here, "slides": used.get(r.name, 0)}
            for r, here in records
        ]
    }  # fmt: skip
    lines = [f"{'name':<24} {'dim':>5} {'px':>4} {'mpp':>5}  {'licence':<22} available"]
    for r, here in records:
        mpp = f"{r.mpp:g}" if r.mpp else "-"
        lines.append(f"{r.name:<24} {r.dim:>5} {r.input_px:>4} {mpp:>5}  {(r.licence or '?')[:22]:<22} {here}")
    lines.append("and any timm/NAME, torchvision/NAME.WEIGHTS, file:PATH#ARCHITECTURE, module.path:callable")
    lines += [f"in this store: {name} on {n} slides" for name, n in sorted(used.items())]
    show(value, "\n".join(lines), args)


def _used(args: argparse.Namespace) -> dict[str, int]:
    store = the_store(args)
    found: dict[str, int] = {}
    for slide in store.slides():
        for ref in store.slide(slide).of_kind("embeddings"):
            short = ref.name.rpartition("/")[2]
            found[short] = found.get(short, 0) + 1
    return found
