"""The class that the benchmarks call; published to the peer as it is."""

from __future__ import annotations

from typing import Any

from activestore import ActiveObject, activemethod


class Bench(ActiveObject):
    """Does as little as possible."""

    value: int
    text: str
    array: Any

    def __init__(self, value: int = 0, array: Any = None) -> None:
        self.value = value
        self.text = ""
        self.array = array

    @activemethod(readonly=True)
    def nothing(self) -> None:
        """Return nothing."""

    @activemethod(changes=("value",))
    def add(self, n: int) -> int:
        """Change a field."""
        self.value += n
        return self.value

    @activemethod(changes=("text",))
    def note(self, text: str) -> None:
        """Change 100 bytes."""
        self.text = text

    @activemethod(readonly=True)
    def total(self, array: Any) -> float:
        """Take an array."""
        return float(array.sum())

    @activemethod(readonly=True)
    def make(self, count: int) -> Any:
        """Return an array."""
        import numpy as np

        return np.ones(count)

    @activemethod(changes=("array",))
    def poke(self, start: int, count: int) -> None:
        """Change a part of the kept array in place."""
        self.array[start : start + count] += 1.0

    @activemethod(readonly=True)
    def mean(self) -> float:
        """Compute over the kept array, where it lies."""
        return float(self.array.mean())


class Perceptron(ActiveObject):
    """A stack of square layers: as many parameters as are asked for."""

    layers: Any

    def __init__(self, width: int, depth: int) -> None:
        import torch

        torch.manual_seed(1)
        row = [torch.nn.Linear(width, width) for _ in range(depth)]
        self.layers = torch.nn.Sequential(*row)

    @activemethod(readonly=True)
    def predict(self, rows: Any) -> Any:
        """Return the output for rows of `width` float32."""
        import torch

        with torch.no_grad():
            return self.layers(torch.from_numpy(rows.copy())).numpy()

    @activemethod
    def step(self, rows: Any) -> float:
        """Train one step of gradient descent; every parameter changes."""
        import torch

        self.layers.zero_grad()
        loss = self.layers(torch.from_numpy(rows.copy())).square().mean()
        loss.backward()
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.sub_(0.01 * parameter.grad)
                parameter.grad = None
        return loss.item()
