"""The paper's workload as an active object: an LSTM that forecasts CPU and memory use.

LSTM 2->64, linear 64->2, window 6, batch 64, Adam 1e-3, MSE, min-max scaling fitted on the
first 80 % of the rows. Model, optimizer, scaler, rows and the state of the random numbers
are fields, so that a training that is cut off goes on bit for bit where its last
checkpoint was.

Source: "Offloading AI workloads across the computing continuum by means of active storage
systems", section 4.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import activestore
from activestore import ActiveObject, activemethod

WINDOW = 6
BATCH = 64
HIDDEN = 64
COLUMNS = ("CPU", "MEM")
TRAIN_SHARE = 0.8


class Network(nn.Module):
    """LSTM and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(len(COLUMNS), HIDDEN, batch_first=True)
        self.linear = nn.Linear(HIDDEN, len(COLUMNS))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Map windows (n, WINDOW, 2) to the next rows (n, 2)."""
        outputs, _ = self.lstm(windows)
        return self.linear(outputs[:, -1])


class Forecaster(ActiveObject):
    """Learns a series of [CPU, MEM] percentages and continues it."""

    requires = ("torch>=2.4", "numpy>=1.26")

    rows: np.ndarray
    low: np.ndarray
    span: np.ndarray
    model: Network
    optimizer: torch.optim.Adam
    chance: torch.Tensor  # state of the generator that shuffles
    epochs_done: int
    losses: list

    def __init__(self, rows: Any, seed: int = 0) -> None:
        """Begin untrained.

        `rows`: [[cpu, mem], ...], or a recording, at any peer, that is asked for them.
        """
        given: Sequence[Sequence[float]] = (
            rows.read() if hasattr(rows, "read") else rows
        )
        self.rows = np.array(given, dtype=np.float64)
        if self.rows.ndim != 2 or self.rows.shape[1] != len(COLUMNS):
            raise ValueError(f"rows must be (n, 2), got {self.rows.shape}")
        if len(self.rows) < 10 * WINDOW:
            raise ValueError(
                f"{len(self.rows)} rows, at least {10 * WINDOW} are needed"
            )
        known = self.rows[: int(TRAIN_SHARE * len(self.rows))]
        self.low = known.min(axis=0)
        # A column that never changes is not scaled.
        self.span = np.where(np.ptp(known, axis=0) > 0, np.ptp(known, axis=0), 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = Network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.chance = torch.Generator().manual_seed(seed).get_state()
        self.epochs_done = 0
        self.losses = []

    def _windows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = torch.tensor((rows - self.low) / self.span, dtype=torch.float32)
        count = len(rows) - WINDOW
        inputs = torch.stack([scaled[i : i + WINDOW] for i in range(count)])
        return inputs, scaled[WINDOW:]

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        border = int(TRAIN_SHARE * len(self.rows))
        return self.rows[:border], self.rows[border:]

    @activemethod
    def train(self, epochs: int = 100, checkpoint_every: int = 1) -> Iterator[dict]:
        """Train further, yielding {epoch, loss, seconds} after each epoch.

        With `checkpoint_every` n, every n-th epoch is committed; 0 for only the end.
        """
        inputs, targets = self._windows(self._split()[0])
        generator = torch.Generator()
        generator.set_state(self.chance)
        loss_of = nn.MSELoss()
        for _ in range(epochs):
            start_s = time.perf_counter()
            order = torch.randperm(len(inputs), generator=generator)
            total = 0.0
            for batch in order.split(BATCH):
                self.optimizer.zero_grad()
                loss = loss_of(self.model(inputs[batch]), targets[batch])
                loss.backward()
                self.optimizer.step()
                total += float(loss.detach()) * len(batch)
            self.optimizer.zero_grad()
            self.epochs_done += 1
            self.losses.append(total / len(inputs))
            self.chance = generator.get_state()
            if checkpoint_every and self.epochs_done % checkpoint_every == 0:
                activestore.checkpoint()
            seconds = time.perf_counter() - start_s
            yield {
                "epoch": self.epochs_done,
                "loss": self.losses[-1],
                "seconds": seconds,
            }

    @activemethod(readonly=True)
    def predict(self, horizon: int = 1, window: Any = None) -> list:
        """Return the next `horizon` rows [cpu, mem] in percent, each from the ones before.

        `window`: the last six rows to go on from; by default the series' own.
        """
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}, at least 1")
        last = np.array(self.rows[-WINDOW:] if window is None else window, dtype=float)
        if last.shape != (WINDOW, len(COLUMNS)):
            raise ValueError(f"window must be ({WINDOW}, 2), got {last.shape}")
        scaled = torch.tensor((last - self.low) / self.span, dtype=torch.float32)
        found = []
        with torch.no_grad():
            for _ in range(horizon):
                following = self.model(scaled[-WINDOW:].unsqueeze(0))
                scaled = torch.cat([scaled, following])
                found.append((following[0].numpy() * self.span + self.low).tolist())
        return found

    @activemethod(readonly=True)
    def evaluate(self) -> dict:
        """Return MSE, MAE, SMAPE and RMSE per column on the last 20 % of the rows."""
        _, rows = self._split()
        predicted = np.array(self.test_predictions())
        truth = rows[WINDOW:]
        error = predicted - truth
        smape = 100 * np.abs(error) / ((np.abs(predicted) + np.abs(truth)) / 2)
        mse = (error**2).mean(axis=0)
        return {
            column: {
                "MSE": float(mse[i]),
                "MAE": float(np.abs(error)[:, i].mean()),
                "SMAPE": float(smape[:, i].mean()),
                "RMSE": float(np.sqrt(mse[i])),
            }
            for i, column in enumerate(COLUMNS)
        }

    @activemethod(readonly=True)
    def test_predictions(self) -> list:
        """Return the forecast of each row of the last 20 %, from the six before it."""
        inputs, _ = self._windows(self._split()[1])
        with torch.no_grad():
            scaled = self.model(inputs).numpy()
        return (scaled * self.span + self.low).tolist()

    @activemethod(readonly=True)
    def digest(self) -> str:
        """Return a fingerprint of parameters, optimizer and random numbers, bit for bit."""
        import hashlib

        found = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            found.update(name.encode() + value.numpy().tobytes())
        for state in self.optimizer.state.values():
            for name in sorted(state):
                found.update(name.encode() + state[name].numpy().tobytes())
        found.update(self.chance.numpy().tobytes())
        return found.hexdigest()

    @activemethod(readonly=True)
    def memory_mb(self) -> float:
        """Return the peak memory of the process that runs this object, in MB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
