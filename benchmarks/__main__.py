"""`make bench`: every benchmark of this folder, each in a process of its own, with the machine's description."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    worst = 0
    for program in sorted(HERE.glob("[a-z]*.py")):
        purpose = next(line for line in program.read_text().splitlines() if line).strip('"')
        print(f"\n{program.stem}: {purpose}", flush=True)
        done = subprocess.run([sys.executable, program, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        worst = max(worst, done.returncode)
        try:
            figures = json.loads(done.stdout)
        except ValueError:
            print(f"  gave no figures (status {done.returncode})")
            continue
        for name, value in figures.items():
            print(f"  {name:28} {value}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
