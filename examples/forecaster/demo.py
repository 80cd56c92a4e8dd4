"""The demo: train from a thin client, kill the peer, go on; tables and plots of it.

`make demo` runs it. Every process that it starts is ended by it; what it stores lies in a
temporary directory that is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import psutil
from series import DATA, read_rows

READY_S = 30.0


class Peer:
    """A peer process on one data directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.process: subprocess.Popen[str] | None = None
        self.endpoint = ""

    def start(self) -> None:
        """Start the peer and wait until it serves; a restart keeps its address."""
        listen = self.endpoint or "tcp://127.0.0.1:0"
        command = [sys.executable, "-m", "activestore.cli.main", "start", "--json"]
        command += ["--data-dir", self.directory, "--listen", listen]
        command += ["--log-level", "error", "--executors", "1", "--name", "demo"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer did not start; its error is above")
        self.endpoint = json.loads(line)["endpoint"]

    def memory_mb(self) -> float:
        """Return the peak memory of the daemon and its executors, in MB."""
        assert self.process is not None
        daemon = psutil.Process(self.process.pid)
        return sum(peak_memory_mb(one.pid) for one in (daemon, *daemon.children()))

    def kill(self) -> None:
        """End the peer as a power cut would: kill -9."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the peer kindly, then at once."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def peak_memory_mb(pid: int) -> float:
    """Return the most memory that a process has had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


@contextlib.contextmanager
def peer_in_temporary_directory() -> Iterator[Peer]:
    """Yield a running peer; end it and remove its data afterwards."""
    with tempfile.TemporaryDirectory(prefix="activestore-demo-") as directory:
        peer = Peer(str(Path(directory) / "data"))
        try:
            peer.start()
            yield peer
        finally:
            peer.stop()


def say(text: str) -> None:
    """Say what happens now."""
    print(f"== {text}", flush=True)


def run_json(command: list[str]) -> dict[str, Any]:
    """Run a program that prints JSON; its progress goes to our standard error."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def client(
    peer: Peer, python: str, options: argparse.Namespace, **extra: Any
) -> dict[str, Any]:
    """Run the thin client against the peer."""
    command = [
        python,
        str(HERE / "thin_client.py"),
        peer.endpoint,
        "--csv",
        options.csv,
    ]
    for name, value in extra.items():
        command += [f"--{name}", str(value)]
    found = run_json(command)
    found["peer_memory_mb"] = peer.memory_mb()
    return found


def site_packages_mb(python: str) -> float:
    """Return the size of an environment's site-packages in MB."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    path = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    )
    root = Path(path.stdout.strip())
    installer = ("pip", "setuptools", "_distutils_hack", "wheel")
    total = 0
    for entry in root.iterdir():
        if entry.name.startswith(installer):
            continue
        files = [entry] if entry.is_file() else entry.rglob("*")
        total += sum(p.stat().st_size for p in files if p.is_file())
    package = HERE.parents[1] / "activestore"
    total += sum(p.stat().st_size for p in package.rglob("*.py"))
    return total / 1e6


def kill_in_the_middle(python: str, options: argparse.Namespace) -> tuple[str, int]:
    """Kill the peer half-way through a training and go on; return digest and epochs."""
    import activestore

    with peer_in_temporary_directory() as peer:
        with activestore.connect(peer.endpoint, timeout_s=5) as store:
            store.publish(str(HERE / "forecaster.py"))
            rows = read_rows(options.csv)
            forecaster = store.create("forecaster.Forecaster", rows, alias="forecaster")
            killed_at = 0
            with contextlib.suppress(activestore.errors.UnavailableError):
                for row in forecaster.train.stream(epochs=options.epochs):
                    if row["epoch"] >= options.epochs // 2 and not killed_at:
                        killed_at = row["epoch"]
                        peer.kill()
        peer.start()
        with activestore.connect(peer.endpoint, timeout_s=5) as store:
            done = store.get("forecaster").epochs_done
        say(
            f"killed after epoch {killed_at}; the restarted peer holds {done} epochs; going on"
        )
        client(peer, python, options, epochs=options.epochs - done)
        with activestore.connect(peer.endpoint) as store:
            return store.get("forecaster").digest(), done


def tables(result: dict[str, Any]) -> None:
    """Print tables like the paper's."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    base, thin = result["baseline"], result["client"]
    table = Table(
        "",
        "baseline",
        "client",
        "peer",
        "aggregate",
        title="Memory and time",
        caption="memory: peaks, of the peer that of daemon and executors; times of the "
        "client hold those of the peer",
    )
    peer_mb, client_mb = thin["peer_memory_mb"], thin["memory_mb"]
    table.add_row(
        "memory, MB", f"{base['memory_mb']:.0f}", f"{client_mb:.1f}", f"{peer_mb:.0f}",
        f"{client_mb + peer_mb:.0f}",
    )  # fmt: skip
    for name in ("train_s", "eval_s", "total_s"):
        table.add_row(
            name.replace("_s", ", s"), f"{base[name]:.2f}", f"{thin[name]:.2f}",
            f"{thin['method_s']:.2f}" if name == "train_s" else "-", f"{thin[name]:.2f}",
        )  # fmt: skip
    sizes = result["site_packages_mb"]
    table.add_row(
        "site-packages, MB", f"{sizes['full']:.0f}", f"{sizes['thin']:.1f}",
        f"{sizes['full']:.0f}", f"{sizes['thin'] + sizes['full']:.0f}",
    )  # fmt: skip
    console.print(table)
    quality = Table("column", "where", "MSE", "MAE", "SMAPE", "RMSE", title="Forecasts")
    for column in base["metrics"]:
        for where, metrics in (("baseline", base), ("offloaded", thin)):
            values = metrics["metrics"][column]
            quality.add_row(
                column, where,
                *(f"{values[name]:.3f}" for name in ("MSE", "MAE", "SMAPE", "RMSE")),
            )  # fmt: skip
    console.print(quality)


def plots(
    result: dict[str, Any], predictions: list[list[float]], out: Path, csv: str
) -> None:
    """Write memory.png, time.png and prediction.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    base, thin = result["baseline"], result["client"]
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.bar(
        ["baseline", "client", "peer's executor"],
        [base["memory_mb"], thin["memory_mb"], thin["peer_memory_mb"]],
        color=["#8da0cb", "#66c2a5", "#fc8d62"],
    )
    axes.set_ylabel("peak memory, MB")
    figure.savefig(out / "memory.png", dpi=120, bbox_inches="tight")
    figure, axes = pyplot.subplots(figsize=(6, 4))
    names = ["train_s", "eval_s", "total_s"]
    for offset, (label, source) in enumerate((("baseline", base), ("offloaded", thin))):
        axes.bar(
            [i + 0.4 * offset for i in range(3)],
            [source[n] for n in names],
            0.38,
            label=label,
        )
    axes.set_xticks([i + 0.2 for i in range(3)], ["train", "evaluate", "total"])
    axes.set_ylabel("seconds")
    axes.legend()
    figure.savefig(out / "time.png", dpi=120, bbox_inches="tight")
    truth = read_rows(csv)[-len(predictions) :]
    figure, both = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True)
    for i, axes in enumerate(both):
        axes.plot([row[i] for row in truth], label="truth", linewidth=0.8)
        axes.plot([row[i] for row in predictions], label="forecast", linewidth=0.8)
        axes.set_ylabel(("CPU", "memory")[i] + ", %")
    both[0].legend()
    both[1].set_xlabel("rows of the last 20 %")
    figure.savefig(out / "prediction.png", dpi=120, bbox_inches="tight")


def main() -> None:
    """Run the whole story."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", default=str(DATA), help="timestamp,CPU,MEM")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--thin-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # The same for baseline and peer.
    thin = options.thin_python
    import activestore

    say(f"baseline: {options.epochs} epochs as a plain local object")
    command = [sys.executable, str(HERE / "baseline.py"), "--csv", options.csv]
    result: dict[str, Any] = {
        "baseline": run_json([*command, "--epochs", str(options.epochs)])
    }
    with peer_in_temporary_directory() as peer:
        say(f"a peer serves at {peer.endpoint}; publishing the forecaster")
        with activestore.connect(peer.endpoint) as store:
            store.publish(str(HERE / "forecaster.py"))
        say("training from an environment with pyzmq and msgpack only")
        result["client"] = client(peer, thin, options, epochs=options.epochs)
        if thin != sys.executable:
            assert not result["client"]["has_torch"], "the thin environment has torch"
        say("kill -9 of the peer, then a restart on the same directory")
        peer.kill()
        started_s = time.perf_counter()
        peer.start()
        result["restart_s"] = time.perf_counter() - started_s
        after = client(peer, thin, options, epochs=0)
        same = after["prediction"] == result["client"]["prediction"]
        say(f"restarted in {result['restart_s']:.2f} s; predictions equal: {same}")
        with activestore.connect(peer.endpoint) as store:
            predictions = store.get("forecaster").test_predictions()
    say("the same training, with kill -9 in the middle of it")
    digest, _ = kill_in_the_middle(thin, options)
    identical = digest == result["client"]["digest"] == result["baseline"]["digest"]
    say(f"baseline, offloaded and killed training end bit-identical: {identical}")
    result["is_same_after_kill"] = same
    result["is_bit_identical"] = identical
    result["site_packages_mb"] = {
        "full": site_packages_mb(sys.executable), "thin": site_packages_mb(thin),
    }  # fmt: skip
    tables(result)
    plots(result, predictions, options.out, options.csv)
    (options.out / "demo.json").write_text(json.dumps(result, indent=2))
    say(f"plots and figures are in {options.out}/")
    if not (same and identical):
        raise SystemExit("the trained model did not survive as it should")


if __name__ == "__main__":
    main()
