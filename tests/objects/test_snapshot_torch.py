"""torch in fields: sharing, resuming bit for bit, one buffer per storage."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from activestore.model import ActiveObject
from activestore.objects.snapshot import Snapshotter
from activestore.wire.state import ObjectState, apply_delta

torch = pytest.importorskip("torch")

# torch's own modules warn about their neighbours; that is not what is tested here.
pytestmark = pytest.mark.filterwarnings("default")


class Trainer(ActiveObject):
    model: Any
    optimizer: Any
    generator: Any


def snapshotter() -> Snapshotter:
    return Snapshotter(
        Trainer, class_name="m.Trainer", revision=b"r" * 16, class_version=0,
        ref_of=lambda _: None, resolve=lambda ref: ref,
    )  # fmt: skip


def shipped(state: ObjectState) -> ObjectState:
    return state._replace(buffers=[bytes(b) for b in state.buffers])


def trainer() -> Trainer:
    torch.manual_seed(3)
    made = Trainer()
    made.model = torch.nn.Sequential(
        torch.nn.Linear(50, 200), torch.nn.BatchNorm1d(200), torch.nn.ReLU(),
        torch.nn.Linear(200, 3),
    )  # fmt: skip
    made.optimizer = torch.optim.Adam(made.model.parameters(), lr=1e-2)
    made.generator = torch.Generator().manual_seed(7)
    return made


def train(obj: Trainer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(64, 50, generator=obj.generator)
        y = torch.randn(64, 3, generator=obj.generator)
        obj.optimizer.zero_grad()
        torch.nn.functional.mse_loss(obj.model(x), y).backward()
        obj.optimizer.step()


def test_resumed_training_is_bit_identical() -> None:
    whole, half = trainer(), trainer()
    train(whole, 6)
    train(half, 3)
    taker = snapshotter()
    state, _ = taker.take(half)

    resumed = Trainer()
    baseline = taker.load(resumed, shipped(state))
    assert taker.changes(resumed, baseline) is None
    train(resumed, 3)

    expected, seen = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], seen[name]) for name in expected)


def test_resumed_from_deltas_is_bit_identical_too() -> None:
    whole, obj = trainer(), trainer()
    train(whole, 4)
    taker = snapshotter()
    state, before = taker.take(obj)
    state = shipped(state)
    for _ in range(2):
        train(obj, 1)
        found = taker.changes(obj, before)
        assert found is not None
        state, before = shipped(apply_delta(state, found[0])), found[1]

    resumed = Trainer()
    taker.load(resumed, state)
    train(resumed, 2)

    expected, seen = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(expected[name], seen[name]) for name in expected)


def test_the_optimizer_steps_the_loaded_model() -> None:
    obj = trainer()
    train(obj, 1)
    taker = snapshotter()
    state, _ = taker.take(obj)

    back = Trainer()
    taker.load(back, shipped(state))

    ours = back.optimizer.param_groups[0]["params"]
    assert all(a is b for a, b in zip(ours, back.model.parameters(), strict=True))
    assert set(back.optimizer.state) == set(ours)
    assert all(p.requires_grad for p in ours)


def test_views_share_one_buffer_and_stay_views() -> None:
    base = torch.zeros(4000, dtype=torch.bfloat16)
    obj = Trainer()
    obj.model = [base, base[10:20], base.view(40, 100).t()]
    taker = snapshotter()
    state, _ = taker.take(obj)

    back = Trainer()
    taker.load(back, shipped(state))
    back.model[0][12] = 1

    assert len(state.buffers) == 1
    assert back.model[1][2] == 1
    assert back.model[2].stride() == (1, 100)
    assert back.model[0].dtype is torch.bfloat16


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0), torch.tensor(3.5), torch.arange(10_000).reshape(100, 100).t(),
        torch.ones(3, requires_grad=True), torch.nn.Parameter(torch.ones(5000)),
        torch.ones(3000, dtype=torch.complex64), torch.eye(3).to_sparse(),
        torch.ones(2000, dtype=torch.bool),
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}",
)  # fmt: skip
def test_tensors_come_back_as_they_were(tensor: Any) -> None:
    obj = Trainer()
    obj.model = tensor
    taker = snapshotter()
    state, before = taker.take(obj)

    back = Trainer()
    baseline = taker.load(back, shipped(state))

    dense = back.model.to_dense() if tensor.is_sparse else back.model
    assert torch.equal(dense, tensor.to_dense() if tensor.is_sparse else tensor)
    assert type(back.model) is type(tensor)
    assert back.model.requires_grad == tensor.requires_grad
    assert taker.changes(obj, before) is None
    assert taker.changes(back, baseline) is None


def test_one_changed_layer_is_one_buffer() -> None:
    obj = Trainer()
    obj.model = torch.nn.Sequential(*[torch.nn.Linear(100, 100) for _ in range(5)])
    taker = snapshotter()
    _, before = taker.take(obj)

    with torch.no_grad():
        obj.model[2].weight += 1
    found = taker.changes(obj, before)

    assert found is not None
    new = [b for b in found[0].buffers if not isinstance(b, int)]
    assert [b.nbytes for b in new] == [40_000]


def test_a_device_that_is_not_here_loads_on_the_cpu() -> None:
    from activestore.objects import rebuild

    made = rebuild.storage(bytearray(b"\x01" * 8), "xpu:7")

    assert made.device.type == "cpu"
    assert made.tolist() == [1] * 8


def test_torch_is_not_imported_for_states_without_it() -> None:
    code = (
        "import sys, activestore.objects.snapshot as s, activestore.model as m\n"
        "class C(m.ActiveObject):\n    a: list\n"
        "c = C(); c.a = [1]\n"
        "s.Snapshotter(C, class_name='C', revision=b'', class_version=0,"
        " ref_of=lambda o: None, resolve=None).take(c)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
