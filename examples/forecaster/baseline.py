"""The same class as a plain local object: what offloading is compared with."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from forecaster import Forecaster
from series import DATA, read_rows


def main() -> None:
    """Train, evaluate and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", default=str(DATA))
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    start_s = time.perf_counter()
    forecaster = Forecaster(read_rows(arguments.csv))
    train_s = time.perf_counter()
    for _ in forecaster.train(epochs=arguments.epochs):
        pass
    evaluate_s = time.perf_counter()
    metrics = forecaster.evaluate()
    end_s = time.perf_counter()
    print(
        json.dumps({
            "train_s": evaluate_s - train_s,
            "eval_s": end_s - evaluate_s,
            "total_s": end_s - start_s,
            "memory_mb": forecaster.memory_mb(),
            "metrics": metrics,
            "digest": forecaster.digest(),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
