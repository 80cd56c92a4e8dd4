"""Run the same rows for rivals, each in its own environment, in a namespace with only lo.

`python bench/rivals/run.py [NAME ...]` installs what is missing under .venv-rivals/, starts
each rival's server and client by `unshare -n`, and prints one table of ratios. Needs root
on Linux for the namespace; without it nothing is run, for some rivals open every interface.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENVS = ROOT / ".venv-rivals"
RUN_S_MAX = 180.0

# What each rival is installed as.
PACKAGES = {
    "ours": [],
    "pyro5": ["Pyro5"],
    "rpyc": ["rpyc"],
    "zeo": ["ZEO"],
    "dask": ["distributed"],
    "ray": ["ray"],
}

# Server and client in one namespace: the server's first line is the client's argument.
SCRIPT = """
ip link set lo up
coproc server { exec "$1" "$2" serve; }
read -r -u "${server[0]}" address
timeout 120 "$1" "$2" "$address"
code=$?
exec {server[1]}>&-
for _ in 1 2 3 4 5 6 7 8 9 10; do
  kill -0 "$server_PID" 2>/dev/null || break
  sleep 0.3
done
kill "$server_PID" 2>/dev/null
wait "$server_PID" 2>/dev/null
exit $code
"""


def python_of(name: str) -> str | None:
    """Return the interpreter of a rival's environment, installing it if needed."""
    if name == "ours":
        return sys.executable
    venv = VENVS / name
    python = venv / "bin" / "python"
    stamp = venv / "installed.stamp"
    if not stamp.exists():
        print(f"== {name}: installing {' '.join(PACKAGES[name])}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "-qq", *PACKAGES[name]], check=False
        )
        if done.returncode:
            return None
        stamp.touch()
    return str(python)


def run(name: str) -> list[dict[str, Any]] | str:
    """Return a rival's figures, or why there are none."""
    python = python_of(name)
    if python is None:
        return "it cannot be installed here"
    command = ["unshare", "-n", "bash", "-c", SCRIPT, "run", python]
    command.append(str(HERE / f"{name}_rival.py"))
    print(f"== {name}: measuring", flush=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_S_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {RUN_S_MAX:g} s"
    rows = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    if not rows:
        return (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:120]
    return rows


def main() -> None:
    """Run the named rivals, or all."""
    names = sys.argv[1:] or list(PACKAGES)
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        raise SystemExit(
            "needs root, unshare and ip: rivals run without a network only"
        )
    if "ours" not in names:
        names = ["ours", *names]
    found = {name: run(name) for name in names}
    ours = {row["row"]: row for row in found["ours"] if isinstance(row, dict)}
    table = Table("who", "row", "p50, us", "p99, us", "x ours")
    for name, rows in found.items():
        if isinstance(rows, str):
            table.add_row(name, "-", rows, "", "")
            continue
        for row in rows:
            ratio = (
                row["p50_us"] / ours[row["row"]]["p50_us"] if row["row"] in ours else 0
            )
            table.add_row(
                name, row["row"], f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}",
                f"{ratio:.2f}",
            )  # fmt: skip
    Console(width=120).print(table)
    out = ROOT / "bench" / "results"
    out.mkdir(exist_ok=True)
    (out / "rivals.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {out / 'rivals.json'}")


if __name__ == "__main__":
    main()
