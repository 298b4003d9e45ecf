"""The commands about published systems: run a pipeline, list and compare runs, fetch public data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.cli.common import pairs, show, the_store
from histostore.cli.main import report
from histostore.cli.progress import Line
from histostore.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from histostore.fetch import Fetched
    from histostore.fetch.fetching import Plan
    from histostore.recipes import Recipe, Run, Sweep

MANY = 20
"""Files shown one by one; more are summed up."""


def run(args: argparse.Namespace) -> int:
    """Run a pipeline, or a sweep over its settings."""
    from histostore import recipes
    from histostore.face import Store
    from histostore.recipes.settings import alternatives

    recipe = recipes.load_recipe(args.pipeline)
    if args.describe:
        show(_described(recipe), _described_text(recipe), args)
        return 0
    given = pairs(args.set, "--set")
    grid = {k: alternatives(recipe.settings, k, v) for k, v in pairs(args.sweep, "--sweep").items()}
    both = sorted(set(given) & set(grid))
    if both:
        raise UsageError(f"setting '{both[0]}' is given by --set and by --sweep; give it once")
    where: dict[str, Any] = {"out": args.out or recipes.runs_beside(args.store), "again": args.again}
    store = Store.of(the_store(args, writing=True)) if args.store is not None else None
    if grid:
        swept = recipes.sweep(recipe, store, given, grid, args.name, progress=Line(), **where)
        return _show_sweep(swept, args)
    made = recipes.run(recipe, store, given, args.name, progress=Line(), **where)
    show(made.to_json() | {"fresh": made.fresh}, _run_text(made, recipe), args)
    return 0


def _described(recipe: Recipe) -> dict[str, Any]:
    from histostore.recipes.settings import describe

    settings = [{"name": n, "type": kind, "default": default} for n, kind, default in describe(recipe.settings)]
    return {"recipe": recipe.name, "citation": recipe.citation, "reproduces": recipe.reproduces,
            "differs": recipe.differs, "needs_store": recipe.needs_store, "settings": settings}  # fmt: skip


def _described_text(recipe: Recipe) -> str:
    about = _described(recipe)
    lines = [f"{recipe.name}: {recipe.citation}"]
    lines += [f"{what}: {about[what]}" for what in ("reproduces", "differs") if about[what]]
    wide = max((len(s["name"]) for s in about["settings"]), default=0)
    lines += [f"  {s['name']:<{wide}}  {_cell(s['default'])}  ({s['type']})" for s in about["settings"]]
    return "\n".join(lines)


def _run_text(made: Run, recipe: Recipe) -> str:
    done = f"done in {made.record.get('seconds', 0):.1f} s" if made.fresh else "already there"
    lines = [f"run '{made.name}' of {recipe.name}: {done}, {made.record.get('rows', 0):,} rows, {made.folder}"]
    wide = max((len(k) for k in made.metrics), default=0)
    for key, value in made.metrics.items():
        beside = f"  (published {_cell(recipe.published[key])})" if key in recipe.published else ""
        lines.append(f"  {key:<{wide}}  {_cell(value)}{beside}")
    counts = {k: n for k, n in (made.record.get("counts") or {}).items() if n}
    lines += ["counts: " + ", ".join(f"{n:,} {what}" for what, n in counts.items())] if counts else []
    lines += [f"note: {note}" for note in made.record.get("notes") or []]
    return "\n".join(lines)


def _show_sweep(swept: Sweep, args: argparse.Namespace) -> int:
    from histostore.recipes import overview

    lines = overview(swept.runs)
    here = sum(r.status == "done" and not r.fresh for r in swept.runs)
    done = sum(r.status == "done" for r in swept.runs)
    text = f"sweep '{swept.name}': {done} of {len(swept.points)} points done ({here} were there), {swept.table}"
    value = {"sweep": swept.name, "folder": str(swept.folder), "runs": lines, "table": str(swept.table)}
    show(value, f"{_table(lines)}\n{text}", args)
    return max([0, *(report(error, args, where=name) for name, error in swept.errors.items())])


def runs(args: argparse.Namespace) -> None:
    """List runs, or compare some."""
    from histostore.recipes import compare, find_runs, list_runs, overview, runs_beside

    root = Path(args.out) if args.out is not None else runs_beside(args.store)
    chosen = find_runs(root, args.names) if args.names else list_runs(root)
    if args.compare or len(args.names) > 1:
        if len(chosen) < 2:
            raise UsageError(f"comparing needs two runs or more; {root} has {len(chosen)} of those asked for")
        beside = compare(chosen)
        show(beside, _compared(beside), args)
        return
    lines = overview(chosen)
    text = _table(lines) if lines else f"no runs in {root}; make one with `histostore run pipelines/….py`"
    if len(args.names) == 1 and len(chosen) == 1:
        settings = [{"setting": k, "value": v} for k, v in chosen[0].settings.items()]
        text += f"\n{_table(settings)}\n{chosen[0].folder}"
        show(chosen[0].to_json(), text, args)
        return
    show({"folder": str(root), "runs": lines}, text, args)


def _compared(beside: dict[str, Any]) -> str:
    lines = []
    parts = (("settings that differ", "differ"), ("environment that differs", "environment"), ("metrics", "metrics"))
    rows = [{"": "status", **dict(zip(beside["runs"], beside["status"], strict=True))}]
    for title, part in parts:
        found = beside[part].items()
        rows += [{"": f"[{title}]"}] if found else []
        rows += [{"": name, **dict(zip(beside["runs"], values, strict=True))} for name, values in found]
    lines.append(_table(rows))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ",".join(map(str, value))
    return str(value)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row[c]) if c in row else "" for c in columns] for row in rows)]
    wide = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(f"{v:<{w}}" for v, w in zip(line, wide, strict=True)).rstrip() for line in cells)


def fetch(args: argparse.Namespace) -> int:
    """Fetch public data, or say what there is."""
    from histostore import fetch as public

    if args.list or args.name is None:
        known = public.datasets()
        value = [{"name": d.name, "title": d.title, "licence": d.licence, "citation": d.citation, "note": d.note,
                  "homepage": d.homepage} for d in known]  # fmt: skip
        text = "\n".join(f"{d.name}: {d.title}\n  licence: {d.licence}\n  cite: {d.citation}" for d in known)
        show({"datasets": value}, text, args)
        return 0
    planned = public.plan(args.name, only=args.only, limit=args.limit, base_url=args.base_url)
    if args.dry_run:
        show(_plan_json(planned), _plan_text(planned), args)
        return 0
    done = public.fetch(planned, Path(args.output or args.name), base_url=args.base_url, progress=Line())
    show(_fetched_json(done), _fetched_text(done), args)
    return max([0, *(report(f.error, args, where=f.path) for f in done.failed if f.error is not None)])


def _plan_json(planned: Plan) -> dict[str, Any]:
    files = [{"path": f.path, "url": f.url, "size": f.size, "sha256": f.sha256, "md5": f.md5} for f in planned.files]
    return {"dataset": planned.dataset.name, "licence": planned.dataset.licence, "files": files,
            "bytes_known": planned.bytes_known, "sizes_unknown": planned.sizes_unknown,
            "counts": dict(planned.counts)}  # fmt: skip


def _plan_text(planned: Plan) -> str:
    d, n = planned.dataset, len(planned.files)
    lines = [f"{d.name}: {d.title}", f"licence: {d.licence} ({d.licence_url})", f"cite: {d.citation}"]
    lines += [f"note: {d.note}"] if d.note else []
    lines += [f"  {f.path}  {_size(f.size)}  {_hash(f.sha256, f.md5)}" for f in planned.files[:MANY]]
    lines += [f"  … and {n - MANY:,} more"] if n > MANY else []
    lines += [f"{count:,} {what}" for what, count in planned.counts.items()]
    unknown = f", and {planned.sizes_unknown:,} of unknown size" if planned.sizes_unknown else ""
    lines.append(f"{n:,} files, {planned.bytes_known / 1e6:,.1f} MB{unknown}; nothing was fetched")
    return "\n".join(lines)


def _size(size: int | None) -> str:
    return "size unknown" if size is None else f"{size:,} bytes"


def _hash(sha256: str | None, md5: str | None) -> str:
    return f"sha256 {sha256[:12]}…" if sha256 else f"md5 {md5[:12]}…" if md5 else "hash unknown"


def _fetched_json(done: Fetched) -> dict[str, Any]:
    files = [{"path": f.path, "done": f.done, "size": f.size, "sha256": f.sha256, "checked": f.checked,
              "error": str(f.error) if f.error is not None else None} for f in done.files]  # fmt: skip
    return {"dataset": done.plan.dataset.name, "folder": str(done.folder), "files": files,
            "not_tried": len(done.plan.files) - len(done.files), "counts": dict(done.plan.counts)}  # fmt: skip


def _fetched_text(done: Fetched) -> str:
    d = done.plan.dataset
    lines = [f"{f.path}: {f.done}, {f.size:,} bytes, checked against {f.checked}" for f in done.files[:MANY]
             if f.error is None]  # fmt: skip
    lines += [f"{count:,} {what}" for what, count in done.plan.counts.items()]
    how: dict[str, int] = {}
    for f in done.files:
        how[f.done] = how.get(f.done, 0) + 1
    said = [f"{n:,} {what}" for what, n in how.items()]
    left = len(done.plan.files) - len(done.files)
    said += [f"{left:,} not tried"] if left else []
    lines.append(f"{d.name} in {done.folder}: {', '.join(said)}; licence: {d.licence}; cite: {d.citation}")
    seen = sum(f.checked == "nothing" for f in done.files)
    lines += [f"note: {seen:,} files have no known hash; the one seen is in fetch.lock.json for next time"] * bool(seen)
    lines += [f"next: {d.next}"] if d.next and not done.failed else []
    return "\n".join(lines)
