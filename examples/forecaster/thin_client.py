"""Train a torch model on a peer from an environment that has only pyzmq and msgpack.

python examples/forecaster/thin_client.py tcp://127.0.0.1:7400

The rows stay at the peer that this program is connected to; the model is made at `--peer`
and asks for them there. `recording.py` and `forecaster.py` were published before.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from series import DATA, read_rows

import activestore
from activestore.errors import AliasNotFoundError


def progress(epoch: int, last: int, loss: float, started_s: float) -> None:
    """Show one line that is written over, on a terminal; every tenth epoch elsewhere."""
    spent_s = time.perf_counter() - started_s
    text = f"epoch {epoch:4d} of {last}  loss {loss:.6f}  {spent_s:5.1f} s"
    if sys.stderr.isatty():
        print(f"\r{text}", end="" if epoch < last else "\n", file=sys.stderr)
    elif epoch % 10 == 0 or epoch == last:
        print(text, file=sys.stderr, flush=True)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint", help="address of any peer")
    parser.add_argument("--csv", default=str(DATA), help="timestamp,CPU,MEM")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--alias", default="forecaster", help="or the id, of the model")
    parser.add_argument("--recording", default="recording", help="alias or id")
    parser.add_argument("--peer", default="", help="where the model is to be made")
    parser.add_argument("--horizon", type=int, default=12)
    parser.add_argument(
        "--report", action="store_true", help="print a line of JSON after each epoch"
    )
    return parser.parse_args(words)


def found(store: Any, name: str) -> Any:
    """Return the object with an alias or id, None where there is none."""
    try:
        return store.get(name)
    except AliasNotFoundError:
        return None


def model_of(store: Any, arguments: argparse.Namespace) -> Any:
    """Return the model; made, with the recording that it learns from, where missing."""
    model = found(store, arguments.alias)
    if model is not None:
        return model
    recording = found(store, arguments.recording)
    if recording is None:
        rows = read_rows(arguments.csv)
        recording = store.create("recording.Recording", rows, alias=arguments.recording)
    return store.create(
        "forecaster.Forecaster", recording, alias=arguments.alias, peer=arguments.peer
    )


def main() -> None:
    """Create or find the forecaster, train it, and print JSON."""
    arguments = arguments_of()
    start_s = time.perf_counter()
    with activestore.connect(arguments.endpoint) as store:
        model = model_of(store, arguments)
        last = model.epochs_done + arguments.epochs
        object_id = store.locate(model)["object_id"].hex()
        train_s = time.perf_counter()
        method_s = 0.0
        for row in model.train.stream(epochs=arguments.epochs):
            method_s += row["seconds"]
            progress(row["epoch"], last, row["loss"], train_s)
            if arguments.report:
                print(json.dumps({**row, "model": object_id}), flush=True)
        evaluate_s = time.perf_counter()
        metrics = model.evaluate()
        end_s = time.perf_counter()
        result = {
            "model": object_id,
            "create_s": train_s - start_s,
            "train_s": evaluate_s - train_s,
            "method_s": method_s,
            "eval_s": end_s - evaluate_s,
            "total_s": end_s - start_s,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "metrics": metrics,
            "digest": model.digest(),
            "epochs_done": model.epochs_done,
            "prediction": model.predict(arguments.horizon),
            "has_torch": importlib.util.find_spec("torch") is not None,
            "has_numpy": importlib.util.find_spec("numpy") is not None,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
