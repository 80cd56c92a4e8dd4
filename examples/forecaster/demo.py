"""The demo: several peers, data at one, a model that learns at another, and kill -9.

    make demo        two edge boards and a server: it trains on the server
    make demo-edge   five edge boards, no server: it trains on one of them

The data is born on an edge peer. The model learns from it on another peer, for a client
that has neither torch nor numpy and is connected to the first. Peers die: the one with
the client and the data, and the one that trains. Nothing is lost, and everything ends bit
for bit as where nothing was killed. Every process that it starts is ended by it; what it
stores lies in a temporary directory that is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demo_cluster import Cluster, end_in_order, program, running
from demo_report import peers_table, plots, tables
from series import DATA

import activestore
from activestore.errors import UnavailableError

# How long the demo itself waits for a silent peer, in seconds.
SILENT_S = 10.0


class Plan(NamedTuple):
    """Which peer does what."""

    home: str  # the data is born here, and clients are connected to it
    trainer: str
    neighbour: str  # it lives on when `home` dies
    destination: str  # the trained model moves here; "" for nowhere


PLANS = {
    "edge-edge-cloud": Plan("edge-1", "cloud", "edge-2", ""),
    "five-edges": Plan("edge-1", "edge-3", "edge-2", "edge-5"),
}


class Demo:
    """The story, told on a cluster that runs."""

    def __init__(
        self, cluster: Cluster, plan: Plan, options: argparse.Namespace
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self._options = options
        self._half = max(1, options.epochs // 2)

    # -- what it does again and again --------------------------------------------------

    def connect(self, name: str) -> activestore.Store:
        """Return a client that is connected to a peer."""
        return activestore.connect(self._cluster.endpoint(name), timeout_s=SILENT_S)

    def client(
        self,
        name: str,
        *words: str,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Run the thin client, connected to a peer; `on_epoch` is told of each epoch."""
        line = [self._options.thin_python, str(HERE / "thin_client.py")]
        line += [self._cluster.endpoint(name), "--csv", self._options.csv, "--report"]
        told: dict[str, Any] = {}
        with program([*line, *words]) as process:
            assert process.stdout is not None
            for row in process.stdout:
                told = json.loads(row)
                if "loss" in told and on_epoch is not None:
                    on_epoch(told)
        if process.returncode or "digest" not in told:
            raise SystemExit(f"thin_client.py failed with {process.returncode}")
        told["peer_memory_mb"] = self._cluster.memory_mb(self._plan.trainer)
        return told

    def show_peers(self, asked: str, objects: list[str]) -> None:
        """Print who is there in the eyes of one peer, and which of our objects each has."""
        rows: list[tuple[str, ...]] = []
        with self.connect(asked) as store:
            held: dict[str, list[str]] = {}
            for name in objects:
                about = store.locate(name)
                text = f"{about['alias']} ({about['bytes'] / 1e3:,.0f} kB)"
                held.setdefault(about["peer"], []).append(text)
            known = sorted(store.peers(), key=lambda row: str(row["peer"]))
        for row in known:
            name, state = str(row["peer"]), str(row["state"])
            if self._cluster.is_killed(name):
                state, traffic = f"killed, thought {state}", ("-", "-")
            else:
                traffic = self._traffic(name)
            holds = ", ".join(held.get(name, [])) or "-"
            rows.append((name, row["zone"], state, *traffic, holds))
        peers_table(f"peers, as {asked} knows them", rows)

    def _traffic(self, name: str) -> tuple[str, str]:
        """Return what a peer has received and sent since it started."""
        with self.connect(name) as store:
            traffic = store.status()["traffic"]
        received, sent = traffic["bytes_in"] / 1e3, traffic["bytes_out"] / 1e3
        return f"{received:,.0f} kB", f"{sent:,.0f} kB"

    # -- the story ---------------------------------------------------------------------

    def publish(self) -> None:
        """Give the data's class to the peer with the data, the model's to the trainer."""
        with self.connect(self._plan.home) as store:
            store.publish(str(HERE / "recording.py"))
        with self.connect(self._plan.trainer) as store:
            store.publish(str(HERE / "forecaster.py"))

    def train(self) -> tuple[dict[str, Any], str]:
        """Train from the thin client, whose peer dies; return what it said, and the data.

        The data is the id of the recording.
        """
        home, trainer = self._plan.home, self._plan.trainer
        recording = ""

        def on_epoch(row: dict[str, Any]) -> None:
            nonlocal recording
            if row["epoch"] == 1:
                with self.connect(home) as store:
                    recording = store.locate("recording")["object_id"].hex()
                self.show_peers(home, [recording, row["model"]])
            if row["epoch"] == self._half:
                self._cluster.kill(home)
                say(
                    f"epoch {self._half}: kill -9 of {home}, with the data and the client"
                )

        options = ["--peer", trainer, "--epochs", str(self._options.epochs)]
        found = self.client(home, *options, on_epoch=on_epoch)
        say(f"trained to the end: the client went on without {home}")
        return found, recording

    def bring_back(self, name: str) -> float:
        """Start what is missing; return how long that took."""
        took_s = self._cluster.up()
        say(f"`up` again: {name} is back after {took_s:.1f} s, at the same address")
        return took_s

    def train_and_kill_trainer(self, recording: str) -> str:
        """Train a second model, whose peer dies half-way; return its digest."""
        plan, epochs = self._plan, self._options.epochs
        killed_at = 0
        with self.connect(plan.neighbour) as store:
            model = store.create(
                "forecaster.Forecaster", store.get(recording), alias="killed",
                peer=plan.trainer,
            )  # fmt: skip
            model_id = store.locate(model)["object_id"].hex()
            with contextlib.suppress(UnavailableError):
                for row in model.train.stream(epochs=epochs):
                    if row["epoch"] >= self._half and not killed_at:
                        killed_at = row["epoch"]
                        self._cluster.kill(plan.trainer)
        self.bring_back(plan.trainer)
        with self.connect(plan.neighbour) as store:
            done = store.get(model_id).epochs_done
        say(f"killed after epoch {killed_at}; it has {done} epochs; going on")
        left = ["--alias", model_id, "--epochs", str(epochs - done)]
        return str(self.client(plan.neighbour, *left)["digest"])

    def move_away(self, model_id: str, prediction: list[Any]) -> bool:
        """Move the model, kill the peer that trained it; return whether it predicts."""
        plan = self._plan
        with self.connect(plan.neighbour) as store:
            model = store.get(model_id)
            store.move(model, plan.destination)
            is_same = bool(model.predict(len(prediction)) == prediction)
            where = store.locate(model)["peer"]
            say(f"moved the model to {where}, predictions equal: {is_same}")
            self._cluster.kill(plan.trainer)
            is_same &= bool(model.predict(len(prediction)) == prediction)
        say(f"kill -9 of {plan.trainer}, for good; predictions equal: {is_same}")
        return is_same


def say(text: str) -> None:
    """Say what happens now."""
    print(f"== {text}", flush=True)


def run_baseline(options: argparse.Namespace) -> dict[str, Any]:
    """Train the same class as a plain local object; its progress goes to the terminal."""
    line = [sys.executable, str(HERE / "baseline.py"), "--csv", options.csv]
    line += ["--epochs", str(options.epochs)]
    with program(line) as process:
        printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(line)}")
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
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


def tell(demo: Demo, plan: Plan, result: dict[str, Any]) -> list[list[float]]:
    """Tell the story; fill `result`, and return the forecast of the last rows."""
    say(f"publishing Recording at {plan.home}, Forecaster at {plan.trainer}")
    demo.publish()
    say(
        f"a thin client of {plan.home} makes the data there, the model at {plan.trainer}"
    )
    client, recording = demo.train()
    result["client"] = client
    demo.bring_back(plan.home)
    say(f"the same training, with kill -9 of {plan.trainer} in the middle of it")
    digest = demo.train_and_kill_trainer(recording)
    is_identical = digest == client["digest"] == result["baseline"]["digest"]
    result["is_bit_identical"] = is_identical
    say(f"baseline, offloaded and killed training end bit-identical: {is_identical}")
    words = ["--alias", client["model"], "--epochs", "0"]
    after = demo.client(plan.neighbour, *words)
    is_same = after["prediction"] == client["prediction"]
    say(f"{plan.trainer} was restarted; predictions equal: {is_same}")
    if plan.destination:
        is_same &= demo.move_away(client["model"], client["prediction"])
    result["is_same_after_kill"] = is_same
    with demo.connect(plan.neighbour) as store:
        predictions: list[list[float]] = store.get(client["model"]).test_predictions()
    demo.show_peers(plan.neighbour, [recording, client["model"]])
    return predictions


def arguments_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", default=str(DATA), help="timestamp,CPU,MEM")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--thin-python", default=sys.executable)
    parser.add_argument("--topology", choices=PLANS, default="edge-edge-cloud")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    return parser.parse_args()


def main() -> None:
    """Run the whole story."""
    options = arguments_of()
    end_in_order()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # The same for baseline and peers.
    plan = PLANS[options.topology]
    say(f"baseline: {options.epochs} epochs as a plain local object")
    result: dict[str, Any] = {
        "topology": options.topology,
        "trainer": plan.trainer,
        "baseline": run_baseline(options),
    }
    say(f"`activestore-node up {options.topology}`")
    with running(options.topology) as cluster:
        say(f"peers: {', '.join(cluster.names)}")
        predictions = tell(Demo(cluster, plan, options), plan, result)
        say("`activestore-node down`")
    if options.thin_python != sys.executable:
        assert not result["client"]["has_torch"], "the thin environment has torch"
    result["site_packages_mb"] = {
        "full": site_packages_mb(sys.executable),
        "thin": site_packages_mb(options.thin_python),
    }
    tables(result)
    plots(result, predictions, options.out, options.csv)
    (options.out / "demo.json").write_text(json.dumps(result, indent=2))
    say(f"plots and figures are in {options.out}/")
    if not (result["is_same_after_kill"] and result["is_bit_identical"]):
        raise SystemExit("the trained model did not survive as it should")


if __name__ == "__main__":
    main()
