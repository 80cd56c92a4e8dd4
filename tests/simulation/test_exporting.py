"""A copy of an object goes out as bytes; damaged, too large or absent it is an error."""

from __future__ import annotations

import pytest

from activestore import ActiveObject, activemethod
from activestore.client.exporting import packed, unpacked
from activestore.errors import InvalidRequestError, ObjectNotFoundError, TooLargeError
from activestore.ids import ObjectId
from activestore.testing import Simulation
from activestore.testing.peers import PeerSettings
from activestore.wire import values
from tests.simulation.models import Letterbox

LETTERBOX = "tests.simulation.models.Letterbox"


class Shelf(ActiveObject):
    """Grows by every call beyond what one message holds."""

    books: list

    def __init__(self) -> None:
        self.books = []

    @activemethod
    def put(self, book: bytes) -> None:
        self.books.append(book)


def test_copy_tells_its_state_and_which_one_it_is() -> None:
    with Simulation(seed=1, peers=1, classes=[Letterbox]) as sim:
        client = sim.client("peer-1")
        box = client.create(LETTERBOX, alias="box")
        box.put(b"one")
        object_id, _ = client.identify(box)
        place = client.locate(box)

        exported = unpacked(
            packed(client.request("export", object_id=object_id), object_id)
        )

    assert exported.named.alias == "box"
    assert values.decode(exported.named.state.fields["last"]) == b"one"
    about = {"alias": "box", "class_name": LETTERBOX, "version": place["version"],
             "epoch": place["epoch"],
             "number": 0, "lineage": 0, "peer": "peer-1", "is_quarantined": False}  # fmt: skip
    assert exported.about == {"object_id": object_id, **about}


def test_peer_without_a_copy_does_not_ask_others() -> None:
    """What is asked for is this peer's own: another one's may be of another lineage."""
    with Simulation(seed=1, peers=2, classes=[Letterbox]) as sim:
        box = sim.client("peer-1").create(LETTERBOX)
        object_id, _ = sim.client("peer-1").identify(box)

        with pytest.raises(ObjectNotFoundError):
            sim.client("peer-2").request("export", object_id=object_id)


def test_quarantined_copy_is_exported_and_then_discarded() -> None:
    """An operator forced the other one: this copy is history, and stays until told."""
    with Simulation(seed=1, peers=2, classes=[Letterbox]) as sim:
        first, second = sim.client("peer-1"), sim.client("peer-2")
        sim.run(5.0)
        box = first.create(LETTERBOX, alias="box", replicas=2)
        object_id, _ = first.identify(box)
        box.put(b"both")
        sim.crash("peer-1")
        sim.run(15.0)
        second.force(object_id)
        second.get(object_id).put(b"forced")
        sim.restart("peer-1")
        sim.run(15.0)

        first = sim.client("peer-1")
        exported = unpacked(first.export(object_id))
        first.discard(object_id)
        sim.run(5.0)

        assert values.decode(exported.named.state.fields["last"]) == b"both"
        assert exported.about["is_quarantined"]
        assert first.request("replication")["quarantined"] == 0
        assert first.get(object_id).numbers() == [*b"bf"]
        with pytest.raises(InvalidRequestError, match="can be discarded"):
            second.discard(object_id)


def quarantined(sim: Simulation) -> ObjectId:
    """Return an object that was forced at peer-2 while peer-1, which has it, was down."""
    sim.run(5.0)
    box = sim.client("peer-1").create(LETTERBOX, replicas=2)
    object_id, _ = sim.client("peer-1").identify(box)
    sim.crash("peer-1")
    sim.run(15.0)
    sim.client("peer-2").force(object_id)
    sim.restart("peer-1")
    sim.run(15.0)
    return object_id


def test_force_of_a_quarantined_copy_is_refused_and_forces_no_other_one() -> None:
    """Its client knows of both peers, and would ask the other one where it may."""
    with Simulation(seed=1, peers=2, classes=[Letterbox]) as sim:
        object_id = quarantined(sim)
        first, second = sim.client("peer-1"), sim.client("peer-2")
        before = second.group(object_id)

        with pytest.raises(InvalidRequestError, match="this copy is quarantined"):
            first.force(object_id)
        sim.run(5.0)

        assert second.group(object_id).lineage == before.lineage
        assert first.group(object_id).is_quarantined


def test_force_of_a_group_that_can_go_on_is_refused() -> None:
    """Nothing is lost, and what the others had acknowledged would be given up."""
    with Simulation(seed=1, peers=3, classes=[Letterbox]) as sim:
        sim.run(5.0)
        client = sim.client("peer-2")
        box = client.create(LETTERBOX, replicas=3)
        sim.crash("peer-1")
        sim.run(15.0)

        with pytest.raises(InvalidRequestError) as refused:
            client.force(box)
        kept = client.group(box)
        sim.crash("peer-3")
        sim.run(15.0)
        forced = client.force(box)

        assert "a majority of its group answers: peer-" in str(refused.value)
        assert "--even-though-majority-answers" in str(refused.value)
        assert (kept.lineage, forced.lineage != 0) == (0, True)
        box.put(b"x")


def test_copy_whose_peer_restarted_alone_is_forced_at_once() -> None:
    """Who was never heard of since does not answer."""
    with Simulation(seed=3, peers=3, classes=[Letterbox]) as sim:
        sim.run(5.0)
        box = sim.client("peer-1").create(LETTERBOX, replicas=3)
        object_id, _ = sim.client("peer-1").identify(box)
        for name in sim.peers:
            sim.crash(name)
        sim.restart("peer-2")
        sim.run(1.0)

        forced = sim.client("peer-2").force(object_id)

        assert (forced.lineage != 0, forced.primary) == (True, "peer-2")


def test_force_though_a_majority_answers_is_an_operators_word() -> None:
    with Simulation(seed=2, peers=3, classes=[Letterbox]) as sim:
        sim.run(5.0)
        client = sim.client("peer-1")
        box = client.create(LETTERBOX, replicas=3)

        forced = client.force(box, even_though_majority_answers=True)

        assert forced.lineage != 0


@pytest.mark.parametrize("operation", ["force", "export", "discard"])
def test_order_about_the_copy_of_one_peer_is_refused_by_another(operation: str) -> None:
    with Simulation(seed=1, peers=2, classes=[Letterbox]) as sim:
        object_id = quarantined(sim)
        before = sim.client("peer-2").group(object_id)
        meant = sim.peers["peer-2"].peer_id

        with pytest.raises(InvalidRequestError, match="where nothing was done"):
            sim.client("peer-1").request(operation, object_id=object_id, peer_id=meant)

        assert sim.client("peer-1").group(object_id).is_quarantined
        assert sim.client("peer-2").group(object_id).lineage == before.lineage


def test_peer_with_a_quarantined_copy_is_asked_ever_less_to_take_another() -> None:
    """Each time the whole state is sent to it, and configs are written to disks."""
    settings = PeerSettings(repair_after_s=10.0)
    with Simulation(seed=1, peers=2, classes=[Letterbox], settings=settings) as sim:
        object_id = quarantined(sim)
        second = sim.client("peer-2")

        def written_by(run_s: float) -> int:
            before = second.group(object_id).number
            sim.run(run_s)
            return second.group(object_id).number - before

        sim.run(60.0)
        assert written_by(300.0) < 10
        (row,) = second.request("replication")["objects"]
        assert "peer-1: a copy of another lineage is there" in row["reason"]
        sim.client("peer-1").discard(object_id)
        assert second.replicate(object_id, 2).copies == 2


def test_copy_beyond_a_message_is_refused_with_both_numbers() -> None:
    settings = PeerSettings(message_bytes_max=200_000)
    with Simulation(seed=1, peers=1, classes=[Shelf], settings=settings) as sim:
        client = sim.client("peer-1")
        shelf = client.create(f"{__name__}.Shelf")
        for _ in range(2):
            shelf.put(b"x" * 150_000)
        object_id, _ = client.identify(shelf)

        with pytest.raises(TooLargeError, match="message_bytes_max"):
            client.request("export", object_id=object_id)
