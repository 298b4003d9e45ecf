"""Run every benchmark, one process each; exit 1 when one of them misses a gate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHORTER = {"out_of_core": ("--rows", "50000"), "serve_load": ("--seconds", "20"), "cohort": ("--slides", "200")}
"""Options for the ones that take longest; by itself each runs at its full size."""


def main() -> int:
    """Run the files beside this one in the order of their names."""
    missed = []
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        print(f"== {path.stem}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{path.stem}", *SHORTER.get(path.stem, ())]
        if subprocess.run(command, check=False).returncode:
            missed.append(path.stem)
    print("missed: " + ", ".join(missed) if missed else "all gates reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
