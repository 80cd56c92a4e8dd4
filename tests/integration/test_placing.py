"""New objects at the peer that was named, and code that follows them there.

Source: design sections 4 and 7.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import pytest

from activestore.errors import (
    ClassNotFoundError,
    RequirementError,
    UnavailableError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(60)]

BOARD = """
from activestore import ActiveObject, activemethod

class Board(ActiveObject):
    requires = ("activestore-test-board>=2",)
    value: int
    def __init__(self, value=0):
        self.value = value
    @activemethod
    def add(self, n: int) -> int:
        self.value += n
        return self.value
"""


def install_board(directory: Path) -> None:
    """Put the metadata of a distribution where a peer finds it."""
    about = directory / "activestore_test_board-2.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: activestore-test-board\nVersion: 2.1\n"
    )


def place_of(store, obj) -> str:
    return store.locate(obj)["peer"]


def revisions(store) -> dict[str, bytes]:
    return {row["class_name"]: row["revision"] for row in store.request("classes")}


def test_object_is_created_at_the_peer_that_was_named(cluster, models_file):
    _, stores = cluster(3)
    stores[0].publish(models_file)

    made = stores[0].create("models.Counter", 5, peer="peer-2")

    assert made.add(2) == 7
    assert place_of(stores[1], made) == "peer-2"
    assert "models.Counter" in revisions(stores[2])
    assert "models.Counter" not in revisions(stores[1])


def test_class_stand_in_creates_at_a_peer_named_by_its_id(cluster, models_file):
    _, stores = cluster(2)
    stores[0].publish(models_file)
    peer_id = stores[1].status()["peer_id"].hex()

    made = stores[0].cls("models.Counter")(3, peer=peer_id)

    assert place_of(stores[0], made) == "peer-1"
    assert made.add() == 4


def test_class_published_elsewhere_is_found_by_its_name(cluster, models_file):
    _, stores = cluster(3)
    stores[2].publish(models_file)

    counter = stores[0].cls("models.Counter")(1)

    assert counter.add() == 2
    assert place_of(stores[0], counter) == "peer-0"


def test_class_that_nobody_published_is_refused(cluster):
    _, stores = cluster(2)

    with pytest.raises(ClassNotFoundError, match=r"models\.Counter"):
        stores[0].create("models.Counter")
    with pytest.raises(ClassNotFoundError, match=r"models\.Counter"):
        stores[0].cls("models.Counter")


def test_graph_is_persisted_at_the_peer_that_was_named(cluster):
    _, stores = cluster(2)
    first, second = models.Node("first"), models.Node("second")
    first.other, second.other = second, first

    stores[0].persist(first, peer="peer-1", alias="first")

    assert place_of(stores[0], first) == place_of(stores[0], second) == "peer-1"
    assert first.bump_other() == 1
    assert second.value == 1


def test_unknown_peer_is_refused_with_the_names_of_the_known(cluster, models_file):
    _, stores = cluster(2)
    stores[0].publish(models_file)

    with pytest.raises(UnavailableError, match=r"'peer-9'.*peer-0, peer-1"):
        stores[0].create("models.Counter", peer="peer-9")


def test_fetched_class_is_there_after_a_restart_without_who_had_it(
    cluster, models_file
):
    peers, stores = cluster(2)
    stores[0].publish(models_file)
    counter = stores[0].create("models.Counter", 5, peer="peer-1")
    object_id = counter_id(counter)
    peers[0].kill()

    peers[1].restart()

    assert peers[1].connect().get(object_id).add() == 6


def counter_id(obj) -> str:
    return repr(obj).split()[-1].rstrip(">")


def test_newer_revision_that_a_state_was_made_with_is_fetched(cluster, tmp_path):
    _, stores = cluster(2)
    source = "from activestore import ActiveObject, activemethod\n\n" + (
        "class Told(ActiveObject):\n    n: int\n    def __init__(self): self.n = 0\n"
        "    @activemethod\n    def tell(self) -> str: return 'VERSION'\n"
    )
    path = tmp_path / "told_models.py"
    path.write_text(source.replace("VERSION", "old"))
    stores[0].publish(str(path))
    old = stores[0].create("told_models.Told", peer="peer-1")
    assert old.tell() == "old"
    path.write_text(source.replace("VERSION", "new"))

    sys.path.insert(0, str(tmp_path))
    try:
        import told_models

        made = told_models.Told()
        stores[0].persist(made, peer="peer-1")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("told_models", None)

    assert made.tell() == "new"
    assert old.tell() == "new"


def test_changed_code_reaches_peers_that_have_objects_of_it(
    cluster, tmp_path, eventually
):
    _, stores = cluster(3)
    source = "from activestore import ActiveObject, activemethod\n\n" + (
        "class Told(ActiveObject):\n    n: int\n    def __init__(self): self.n = 0\n"
        "    @activemethod\n    def tell(self) -> str: return 'VERSION'\n"
    )
    path = tmp_path / "told_models.py"
    path.write_text(source.replace("VERSION", "old"))
    stores[0].publish(str(path))
    old = stores[0].create("told_models.Told", peer="peer-1")
    assert old.tell() == "old"
    path.write_text(source.replace("VERSION", "new"))

    stores[2].publish(str(path))

    eventually(lambda: old.tell() == "new")


@pytest.fixture
def boards(make_peer, eventually, tmp_path, monkeypatch):
    """Return stores of three peers, of which the last has what Board requires."""
    first = make_peer(name="plain-0")
    second = make_peer(name="plain-1", join=first.endpoint)
    install_board(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    third = make_peer(name="board", join=first.endpoint)
    stores = [peer.connect() for peer in (first, second, third)]
    for store in stores:
        eventually(
            lambda store=store: (
                sum(row["state"] == "alive" for row in store.peers()) == 3
            )
        )
    path = tmp_path / "boards.py"
    path.write_text(BOARD)
    stores[0].publish(str(path))
    return stores


def test_object_goes_to_the_peer_that_has_what_its_class_requires(boards):
    made = boards[0].create("boards.Board", 1, alias="the board")

    assert place_of(boards[0], made) == "board"
    assert made.add(2) == 3


def test_local_object_goes_to_the_peer_that_has_what_its_class_requires(
    boards, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    import boards as module

    made = module.Board(1)
    boards[0].persist(made)

    assert place_of(boards[0], made) == "board"
    assert made.add(2) == 3


def test_peers_tell_what_classes_require_and_how_busy_they_are(boards, eventually):
    boards[0].create("boards.Board", 1)  # The others are asked for what it requires.

    def told() -> dict[str, str | None]:
        rows = boards[1].peers()
        return {
            row["peer"]: row["installed"].get("activestore-test-board") for row in rows
        }

    eventually(lambda: told() == {"plain-0": None, "plain-1": None, "board": "2.1"})
    eventually(lambda: all(row["load"] for row in boards[1].peers()))
    for row in boards[1].peers():
        assert row["load"]["slots"] > 0
        assert row["load"]["disk_free_mb"] > 0
        assert row["cores"] > 0
        assert row["memory_mb"] > 0


def test_each_of_many_objects_goes_where_what_its_class_requires_is(
    boards, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    import boards as module

    made = [
        module.Board(n) if n % 3 else models.Counter(n) for n in range(2 * 256 + 40)
    ]
    told = []
    boards[0].persist(iter(made), progress=told.append)

    assert told[-1] == len(made)
    assert {place_of(boards[0], one) for one in made[1:30:3]} == {"board"}
    assert {place_of(boards[0], one) for one in made[0:30:3]} == {"plain-0"}
    assert place_of(boards[0], made[-1]) == "board"
    assert [one.value for one in made[-5:]] == list(range(547, 552))


def test_many_objects_for_a_peer_that_lacks_what_they_need_are_refused(
    boards, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    import boards as module

    with pytest.raises(RequirementError) as error:
        boards[0].persist([module.Board(1), module.Board(2)], peer="plain-1")

    assert error.value.peers_with == ("board",)
    assert not list(boards[0].objects())


def test_peer_without_the_requirements_refuses_and_names_who_has_them(boards):
    with pytest.raises(RequirementError, match=r"test-board.*have it: board") as error:
        boards[0].create("boards.Board", peer="plain-1")

    assert error.value.peers_with == ("board",)
    assert any("activestore-test-board" in one for one in error.value.missing)


def test_code_that_loads_elsewhere_only_is_published_through_any_peer(boards, tmp_path):
    (tmp_path / "site" / "board_driver.py").write_text("VOLTS = 5\n")
    path = tmp_path / "drivers.py"
    path.write_text("import board_driver\n" + BOARD.replace("Board", "Driver"))

    assert boards[0].publish(str(path)) == ["drivers.Driver"]

    made = boards[0].create("drivers.Driver", 1)
    assert made.add(1) == 2
    assert place_of(boards[1], made) == "board"


def test_code_that_loads_nowhere_is_refused_with_what_it_lacks(cluster, tmp_path):
    _, stores = cluster(2)
    path = tmp_path / "drivers.py"
    path.write_text("import board_driver_of_nobody\n" + BOARD)

    with pytest.raises(RequirementError, match="board_driver_of_nobody"):
        stores[0].publish(str(path))


def test_many_creates_of_a_lacking_class_fetch_it_once(cluster, models_file):
    peers, stores = cluster(2)
    stores[0].publish(models_file)

    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(
                lambda n: stores[0].create("models.Counter", n, peer="peer-1"), range(8)
            )
        )

    assert [one.value for one in made] == list(range(8))

    assert peers[1].log().count("class fetched class=models.Counter") == 1


def test_moved_object_brings_its_code_before_its_peer_dies(cluster, models_file):
    peers, (here, there) = cluster(2)
    here.publish(models_file)
    counter = here.create("models.Counter", 5)
    object_id = here.locate(counter)["object_id"]

    here.move(counter, "peer-1")
    peers[0].kill()

    assert there.get(object_id).add(2) == 7


def test_object_is_not_moved_to_a_peer_that_lacks_what_its_class_needs(boards):
    board = boards[2].create("boards.Board", 5)

    with pytest.raises(RequirementError, match="activestore-test-board"):
        boards[2].move(board, "plain-0")

    assert place_of(boards[2], board) == "board"
    assert board.add(1) == 6
