"""Run the same rows for rivals, each in its own environment, in a namespace with only lo.

`python bench/rivals/run.py [NAME ...]` installs what is missing under .venv-rivals/, runs
each rival's driver in new network, process and mount namespaces, and prints one table.
Our own rows are measured before, between and after, for a machine's speed drifts.

Rules of this file:
- A rival runs without a network or not at all: some of them open every interface. That
  needs root on Linux, unshare, setpriv, ip and mount.
- What a rival started ends with it: init of its process namespace is killed when this
  process ends, in whatever way, and the kernel kills the rest.
- A rival that is not installed, fails or hangs is one line of the report.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import compare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENVS = ROOT / ".venv-rivals"
SESSION_S_MAX = 120.0
# Our sessions among the others: before the first, after so many, and after the last.
OURS_EVERY = 3

NUMPY = "numpy==2.2.6"  # the newest for every supported Python
PACKAGES = {
    "pyro5": ["Pyro5==5.17", NUMPY],
    "rpyc": ["rpyc==6.0.2", NUMPY],
    "zeo": ["ZEO==6.2", NUMPY],
    "dask": ["distributed==2026.8.0", NUMPY],
    "ray": ["ray==2.60.0", NUMPY],
    "dataclay": ["dataclay==4.3.1", NUMPY],
}

# When this process ends, unshare is killed; when unshare ends, init of the namespace is.
NAMESPACE = "setpriv --pdeathsig KILL unshare --net --uts --pid --fork --kill-child"
NAMESPACE += " --mount-proc --"
# The shell stays init of the namespace; the name resolves without a network, and nothing
# is left in shared memory.
SCRIPT = """
ip link set lo up && hostname localhost && mount -t tmpfs tmpfs /dev/shm || exit 3
"$@"
exit $?
"""

Found = dict[str, Any]


def python_of(name: str) -> str:
    """Return the interpreter of a rival's environment, installing it if needed.

    Raises:
        RuntimeError: it cannot be installed; says why.
    """
    if name == "ours":
        return sys.executable
    venv = VENVS / name
    python = venv / "bin" / "python"
    stamp = venv / "installed.stamp"
    wanted = " ".join(PACKAGES[name])
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    print(f"== {name}: installing {wanted}", flush=True)
    commands = [[sys.executable, "-m", "venv", str(venv)]] * (not python.exists())
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    for command in [*commands, [*pip, *PACKAGES[name]]]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"not installed: {last_line(done.stderr)}")
    stamp.write_text(wanted)
    return str(python)


def last_line(text: str) -> str:
    """Return the last line of what a process said, short."""
    lines = text.strip().splitlines() or ["it said nothing"]
    return lines[-1].strip()[:120]


def run(name: str) -> Found:
    """Return what a session printed: `rows`, `why`, `version`, `notes`, `failed`."""
    found: Found = {"rows": {}, "why": {}, "version": "", "notes": {}, "failed": ""}
    try:
        python = python_of(name)
    except RuntimeError as error:
        return {**found, "failed": str(error)}
    print(f"== {name}: measuring", flush=True)
    with tempfile.TemporaryDirectory(
        prefix="as-", ignore_cleanup_errors=True
    ) as folder:
        command = [*NAMESPACE.split(), "bash", "-c", SCRIPT, "run", python]
        command += [str(HERE / f"{name}_rival.py"), folder]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=SESSION_S_MAX, check=False,
            )  # fmt: skip
            output = done.stdout
            if done.returncode:
                found["failed"] = last_line(done.stderr)
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode(errors="replace")
            found["failed"] = f"took more than {SESSION_S_MAX:g} s"
    for line in output.splitlines():
        if line.startswith('{"row"'):
            row = json.loads(line)
            part = "why" if "why" in row else "rows"
            found[part][row.pop("row")] = row.get("why", row)
        elif line.startswith(('{"version"', '{"failed"')):
            found.update(json.loads(line))
    return found


def median_of(sessions: list[Found]) -> Found:
    """Return one session made of several: the median of each row."""
    merged = {**sessions[0], "rows": {}, "why": {}, "failed": ""}
    for session in sessions:
        merged["why"].update(session["why"])
        merged["failed"] = merged["failed"] or session["failed"]
    for row in dict.fromkeys(row for one in sessions for row in one["rows"]):
        several = [one["rows"][row] for one in sessions if row in one["rows"]]
        merged["rows"][row] = {
            key: statistics.median(one[key] for one in several) for key in several[0]
        }
        merged["rows"][row]["sessions"] = [one["value"] for one in several]
    return merged


def main() -> None:
    """Run the named rivals, or all."""
    names = sys.argv[1:] or list(PACKAGES)
    unknown = sorted(set(names) - set(PACKAGES))
    if unknown:
        raise SystemExit(f"unknown: {unknown}; expected of {sorted(PACKAGES)}")
    tools = [
        tool for tool in ("unshare", "setpriv", "ip", "mount") if not shutil.which(tool)
    ]
    if os.geteuid() != 0 or tools:
        raise SystemExit(
            "rivals run only without a network, which needs root on Linux and the tools "
            f"unshare, setpriv, ip and mount; missing: {tools or ['root']}"
        )
    ours, rivals = [run("ours")], {}
    for count, name in enumerate(names, 1):
        rivals[name] = run(name)
        if count % OURS_EVERY == 0 or count == len(names):
            ours.append(run("ours"))
    compare.write({"ours": median_of(ours), **rivals}, ROOT / "bench" / "results")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; nothing is left running") from None
