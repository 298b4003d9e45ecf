"""Extraction and search on a CUDA device: beside the bare forward pass, and checked against the CPU.

    python -m benchmarks.gpu                        # all parts, under eight minutes
    python -m benchmarks.gpu --only resnet search   # some (and the tiles that they need)
    python -m benchmarks.gpu --device cpu --tiles 96 --rows 4000    # the script itself, where there is no device

Every part is a process of its own with a limit of its own, so one that fails, hangs or crashes costs no other. Prints
one line per figure as it goes, and the parts that failed and the gates that were missed at the end; exits 1 where there
are any. All figures are written to `--result` as JSON after each part; where the variable OUT names a folder, to
``gpu.json`` in it by default.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LIMITS = {
    "machine": 60, "tiles": 150, "vit": 150, "resnet": 120, "decoding": 60, "search": 90, "faiss": 120, "agree": 120,
    "compile": 120,
}  # fmt: skip
"""Parts in their order, and the seconds that each may take at most."""
NEED_TILES = ("vit", "resnet", "decoding")


def say(text: str) -> None:
    """Print one line now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_parts(
    limits: Mapping[str, float], command: Sequence[str], folder: Path, *, seconds: float, result: Path | None = None
) -> dict[str, Any]:
    """Run parts one after the other, each as ``command --part NAME``, and return what they found and how they ended.

    Parameters
    ----------
    limits
        Parts, with the seconds that each may take.
    seconds
        For all of them: none is begun after that, and none runs on beyond it.
    result
        Written anew after every part.
    """
    begun, parts = time.monotonic(), {}
    for part, limit in limits.items():
        now = time.monotonic()
        left = begun + seconds - now
        ended = "not begun: the time is over" if left < 5 else _run([*command, "--part", part], min(limit, left))
        path = folder / f"{part}.json"
        kept = json.loads(path.read_text()) if path.exists() else {"found": {}, "missed": []}
        parts[part] = kept | {"ended": ended, "seconds": round(time.monotonic() - now, 1)}
        say(f"{part:<9} {ended or 'done'}, {parts[part]['seconds']:.0f} s")
        if result is not None:
            result.write_text(json.dumps(parts, indent=1))
    return parts


def _run(command: Sequence[str], limit: float) -> str | None:
    """Return None where it ended well, else how it did."""
    try:
        code = subprocess.run(command, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"STOPPED after {limit:.0f} s"
    if code == 0:
        return None
    return f"CRASHED by signal {-code}" if code < 0 else "FAILED"


def summary(parts: Mapping[str, Any]) -> int:
    """Print the verdict; return the exit code."""
    failed = [f"{part}: {one['ended']}" for part, one in parts.items() if one["ended"]]
    missed = [what for one in parts.values() for what in one["missed"]]
    for line in failed + missed:
        say(f"  {line}")
    say(f"{len(failed)} of {len(parts)} parts did not end well, {len(missed)} gates missed")
    return 1 if failed or missed else 0


def one_part(args: argparse.Namespace) -> int:
    """Run one part in this process."""
    from benchmarks._gpu import PARTS, Notes

    given = {"device": args.device, "tiles": args.tiles, "rows": args.rows, "rounds": args.rounds}
    notes = Notes(args.part, args.folder, **given)
    try:
        PARTS[args.part](notes)
    except Exception as error:
        notes.say(f"{type(error).__name__}: {error}", error=f"{type(error).__name__}: {error}")
        raise
    return 0


def main() -> int:
    """Run the parts, where there is a device."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), metavar="PART", help=", ".join(LIMITS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: small networks, no gates")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the search")
    parser.add_argument("--tiles", type=int, default=24_576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7.5)
    out = os.environ.get("OUT")
    parser.add_argument("--result", type=Path, metavar="FILE", default=Path(out) / "gpu.json" if out else None)
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return one_part(args)
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            say("no CUDA device here: nothing was measured")
            return 0
    only = {*(args.only or LIMITS)}
    if only & {*NEED_TILES}:
        only.add("tiles")
    with tempfile.TemporaryDirectory(prefix="histostore-gpu-") as folder:
        command = [sys.executable, "-m", "benchmarks.gpu", "--folder", folder, "--device", args.device]
        for option in ("rows", "tiles", "rounds"):
            command += [f"--{option}", str(getattr(args, option))]
        limits = {part: limit for part, limit in LIMITS.items() if part in only}
        parts = run_parts(limits, command, Path(folder), seconds=60 * args.minutes, result=args.result)
    return summary(parts)


if __name__ == "__main__":
    raise SystemExit(main())
