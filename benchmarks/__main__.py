"""Run every benchmark, one process each; exit 1 when one of them misses a gate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run the files beside this one in the order of their names."""
    missed = []
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        print(f"== {path.stem}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=False).returncode:
            missed.append(path.stem)
    print("missed: " + ", ".join(missed) if missed else "all gates reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
