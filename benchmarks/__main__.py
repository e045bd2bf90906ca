"""`make bench`: every benchmark of this folder, each in a process of its own, with the machine's description.

python -m benchmarks                       text
python -m benchmarks --json figures.json   and the same for programs
python -m benchmarks fork step             only these
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import Figure

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"table"}
MARK = "<!-- the last table; `python -m benchmarks --page` writes it -->"


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": model,
        "cores": os.cpu_count() or 0,
        "memory_gb": round(int(memory.split()[1]) / 2**20, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("[a-z]*.py") if path.stem not in NOT_BENCHMARKS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--page", action="store_true", help="put the table into benchmarks/README.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.which) - set(names):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    told = machine()
    print(", ".join(f"{key} {value}" for key, value in told.items()))
    worst = 0
    found: dict[str, list[Figure]] = {}
    for name in arguments.which or names:
        program = HERE / f"{name}.py"
        purpose = next(line for line in program.read_text().splitlines() if line).strip('"')
        print(f"\n{name}: {purpose}", flush=True)
        done = subprocess.run([sys.executable, program, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        worst = max(worst, done.returncode)
        try:
            figures = [Figure(**row) for row in json.loads(done.stdout)]
        except ValueError:
            print(f"  gave no figures (status {done.returncode})")
            continue
        found[name] = figures
        print("\n".join(f"  {figure.line()}" for figure in figures), flush=True)
    if arguments.json is not None:
        rows = {name: [figure._asdict() | {"holds": figure.holds} for figure in figures] for name, figures in found.items()}
        arguments.json.write_text(json.dumps({"machine": told, "figures": rows}, indent=1) + "\n")
    if arguments.page:
        page = HERE / "README.md"
        head = page.read_text().partition(MARK)[0]
        page.write_text(f"{head}{MARK}\n\n{table(told, found)}\n")
    return worst


def table(told: dict[str, str | int | float], found: dict[str, list[Figure]]) -> str:
    """Markdown."""
    lines = [", ".join(f"{key} {value}" for key, value in told.items()), ""]
    for name, figures in found.items():
        lines += [f"### {name}", "", "| figure | measured | bar | holds |", "|---|--:|--:|---|"]
        for figure in figures:
            bar = "" if figure.bar is None else f"{'≥' if figure.at_least else '≤'} {figure.bar:g} {figure.unit}"
            holds = "" if figure.bar is None else ("yes" if figure.holds else "**no**")
            lines.append(f"| {figure.name} | {figure.value:.3g} {figure.unit} | {bar} | {holds} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
