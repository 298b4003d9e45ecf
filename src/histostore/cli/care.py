"""The commands that look after stores: verify, gc, delete, doctor, models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.cli.common import names, show, the_store
from histostore.cli.progress import Line
from histostore.cli.workers import client_of, wants_workers

if TYPE_CHECKING:
    import argparse

    from histostore.store.gc import GcReport

EXIT_DAMAGED = 3
_GC_LINE = "{:<24} {:<12} {:<12} {:>9} {:>12}"


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
    from histostore.health import doctor as run

    health = run(args.store)
    show({**health.found, "problems": list(health.problems)}, str(health), args)
    return 0 if health.ok else EXIT_DAMAGED


def models(args: argparse.Namespace) -> None:
    """List backbones."""
    from histostore.inventory import backbones_known, backbones_used

    used = backbones_used(the_store(args)) if args.store is not None else {}
    known = backbones_known(used)
    lines = [f"{'name':<24} {'dim':>5} {'px':>4} {'mpp':>5}  {'licence':<22} available"]
    for r in known:
        mpp = f"{r['mpp']:g}" if r["mpp"] else "-"
        lines.append(
            f"{r['name']:<24} {r['dim']:>5} {r['input_px']:>4} {mpp:>5}  {(r['licence'] or '?')[:22]:<22} "
            f"{r['available']}"
        )
    lines.append("and any timm/NAME, torchvision/NAME.WEIGHTS, file:PATH#ARCHITECTURE, module.path:callable")
    lines += [f"in this store: {name} on {n} slides" for name, n in sorted(used.items())]
    show({"models": known}, "\n".join(lines), args)
