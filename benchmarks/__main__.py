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
import tempfile
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
SHORTER = {
    "arithmetic": ("--slides", "100"),
    "catalog": ("--slides", "500"),
    "cohort": ("--slides", "200"),
    "embed": ("--tiles", "192", "--many", "384", "--rounds", "2"),
    "extraction": ("--rounds", "5"),
    "growth": ("--most", "10000", "--rounds", "1"),
    "heads": ("--no-autoencoder", "--held", "C2", "C4"),
    "memory": ("--size", "18600", "9950"),
    "out_of_core": ("--rows", "8000", "--dim", "256", "--in-memory", "50000000", "--limit", "600"),
    "rows": ("--rounds", "3"),
    "scale": ("--slides", "4", "--edge", "6144", "--rounds", "2"),
    "search": ("--rounds", "3"),
    "serve_fuzz": ("--requests", "500"),
    "serve_load": ("--seconds", "10"),
    "serve_search": ("--slides", "400", "--rounds", "3"),
    "tiles": ("--rounds", "3"),
}
"""Options for the ones that take longest, all of them under 15 minutes; by itself each runs at its full size."""

ENVIRONMENT = {"ridge": {"OPENBLAS_NUM_THREADS": "1"}}
"""Of processor time that is compared: BLAS threads that wait for each other count as work."""

ONE_STORE = ("heads", "real_sections", "retrieval")
"""Given one folder, in which the first of them makes the store of the real sections."""

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


def run(name: str, folder: str) -> tuple[str, int, float]:
    """Run one benchmark, showing what it prints; return that, its exit code and its seconds."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *([folder] if name in ONE_STORE else [])]
    command += SHORTER.get(name, ())
    begun, lines = time.monotonic(), []
    environment = os.environ | ENVIRONMENT.get(name, {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
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
    written = sections(args.result) if args.names else {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="histostore-bench-") as shared:
        missed = run_all(args.names or known, shared, head, written, args.result)
    took = f"{(time.monotonic() - begun) / 60:.1f} minutes"
    print("missed: " + ", ".join(missed) if missed else "no gate missed", f"({args.result}, {took})")
    return 1 if missed else 0


def run_all(names: list[str], shared: str, head: list[str], written: dict[str, str], result: Path) -> list[str]:
    """Run benchmarks one after the other, write what they print, and return those that missed a gate."""
    missed = []
    for name in names:
        print(f"== {name}", flush=True)
        text, code, seconds = run(name, shared)
        if code:
            missed.append(name)
        given = [f"{key}={value}" for key, value in ENVIRONMENT.get(name, {}).items()]
        shown = " ".join([*given, "python -m", f"benchmarks.{name}", *SHORTER.get(name, ())])
        verdict = "a gate was missed" if code else "no gate missed"
        lines = [f"## {name}", "", f"`{shown}`: {verdict}, {seconds:.0f} s", "", "```text", text.rstrip(), "```"]
        written[name] = "\n".join(lines)
        # after each: a long run that is stopped keeps the rest
        result.write_text("\n\n".join(["\n".join(head), *(written[n] for n in sorted(written))]) + "\n")
    return missed


if __name__ == "__main__":
    sys.exit(main())
