"""A test kit for users: whole clusters in one process, in virtual time, from one seed.

from activestore.testing import Simulation

with Simulation(seed=7, peers=3, classes=[Counter]) as sim:
    counter = sim.create("model.Counter", alias="hits")
    sim.crash("peer-1")
    sim.restart("peer-1")
    assert counter.add(1) == 1

And a judge of histories, simulated or not: see `check_linearizable`.
"""

from activestore.testing.clients import LoggedOperation, SimClient
from activestore.testing.executors import ExecutorSpeed
from activestore.testing.faults import Faults
from activestore.testing.histories import History, Operation, Outcome
from activestore.testing.linearizability import Answer, Verdict, check_linearizable
from activestore.testing.network import Latency, LinkQuality
from activestore.testing.peers import PeerSettings
from activestore.testing.seeds import seeds
from activestore.testing.sequential import Counter, Map, Register
from activestore.testing.simulation import Simulation, Task
from activestore.testing.storage import DiskSpeed

__all__ = [
    "Answer", "Counter", "DiskSpeed", "ExecutorSpeed", "Faults", "History", "Latency",
    "LinkQuality", "LoggedOperation", "Map", "Operation", "Outcome", "PeerSettings",
    "Register", "SimClient", "Simulation", "Task", "Verdict", "check_linearizable",
    "seeds",
]  # fmt: skip
