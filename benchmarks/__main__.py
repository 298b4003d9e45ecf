"""Run every benchmark, one process each, and write what they print to RESULTS.md; exit 1 when one misses a gate.

python -m benchmarks                   # all of them, the long ones at a smaller size
python -m benchmarks rows tiles        # some
python -m benchmarks --result FILE
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
SHORTER = {
    "arithmetic": ("--slides", "500"),
    "catalog": ("--slides", "1000"),
    "cohort": ("--slides", "200"),
    "growth": ("--most", "10000", "--rounds", "1"),
    "out_of_core": ("--rows", "10000"),
    "serve_load": ("--seconds", "20"),
}
"""Options for the ones that take longest; by itself each runs at its full size."""

PACKAGES = (
    "histostore", "numpy", "torch", "zarr", "anndata", "scanpy", "faiss-cpu", "scikit-learn", "imagecodecs",
    "openslide-python", "openvino", "distributed", "obstore",
)  # fmt: skip


def machine() -> list[str]:
    """Return what the figures were measured on, as lines of Markdown."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    of = f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    return [
        f"- {date.today().isoformat()}, {of}, {platform.system()}, Python {platform.python_version()}",
        f"- {', '.join(found)}",
    ]


def run(name: str) -> tuple[str, int, float]:
    """Run one benchmark, showing what it prints; return that, its exit code and its seconds."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *SHORTER.get(name, ())]
    begun, lines = time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines), process.returncode, time.monotonic() - begun


def sections(path: Path) -> dict[str, str]:
    """Return what an earlier run wrote, by benchmark."""
    if not path.exists():
        return {}
    parts = path.read_text().split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part.strip()}" for part in parts}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    known = [path.stem for path in sorted(HERE.glob("[a-z]*.py"))]
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}; the others' results stay"
    )
    parser.add_argument("--result", type=Path, default=HERE / "RESULTS.md", metavar="FILE")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(known)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    head = ["# What the benchmarks printed", "", "Written by `make bench`; ratios are medians of interleaved rounds."]
    head += ["", *machine()]
    written, missed = sections(args.result) if args.names else {}, []
    for name in args.names or known:
        print(f"== {name}", flush=True)
        text, code, seconds = run(name)
        if code:
            missed.append(name)
        shown = " ".join(["python -m", f"benchmarks.{name}", *SHORTER.get(name, ())])
        verdict = "a gate was missed" if code else "no gate missed"
        lines = [f"## {name}", "", f"`{shown}`: {verdict}, {seconds:.0f} s", "", "```text", text.rstrip(), "```"]
        written[name] = "\n".join(lines)
        # after each: a long run that is stopped keeps the rest
        args.result.write_text("\n\n".join(["\n".join(head), *(written[n] for n in sorted(written))]) + "\n")
    print("missed: " + ", ".join(missed) if missed else "no gate missed", f"({args.result})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
