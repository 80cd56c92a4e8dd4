"""Train a torch model on a peer from an environment that has only pyzmq and msgpack.

python examples/forecaster/thin_client.py tcp://127.0.0.1:7400
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from series import DATA, read_rows

import activestore


def progress(epoch: int, last: int, loss: float, started_s: float) -> None:
    """Show one line that is written over, on a terminal; every tenth epoch elsewhere."""
    spent_s = time.perf_counter() - started_s
    text = f"epoch {epoch:4d} of {last}  loss {loss:.6f}  {spent_s:5.1f} s"
    if sys.stderr.isatty():
        print(f"\r{text}", end="" if epoch < last else "\n", file=sys.stderr)
    elif epoch % 10 == 0 or epoch == last:
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Create or find the forecaster, train it, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--csv", default=str(DATA))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--alias", default="forecaster")
    parser.add_argument("--horizon", type=int, default=12)
    arguments = parser.parse_args()
    start_s = time.perf_counter()
    with activestore.connect(arguments.endpoint) as store:
        known = [row["alias"] for row in store.objects(arguments.alias)]
        if arguments.alias in known:
            forecaster = store.get(arguments.alias)
        else:
            forecaster = store.create(
                "forecaster.Forecaster", read_rows(arguments.csv), alias=arguments.alias
            )
        last = forecaster.epochs_done + arguments.epochs
        train_s = time.perf_counter()
        method_s = 0.0
        for row in forecaster.train.stream(epochs=arguments.epochs):
            method_s += row["seconds"]
            progress(row["epoch"], last, row["loss"], train_s)
        evaluate_s = time.perf_counter()
        metrics = forecaster.evaluate()
        end_s = time.perf_counter()
        result = {
            "create_s": train_s - start_s,
            "train_s": evaluate_s - train_s,
            "method_s": method_s,
            "eval_s": end_s - evaluate_s,
            "total_s": end_s - start_s,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "metrics": metrics,
            "digest": forecaster.digest(),
            "epochs_done": forecaster.epochs_done,
            "prediction": forecaster.predict(arguments.horizon),
            "has_torch": importlib.util.find_spec("torch") is not None,
            "has_numpy": importlib.util.find_spec("numpy") is not None,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
