"""What a call does to state: in-place changes, shared objects, failures.

Source: design section 4 ("In-place changes count"), section 5.
"""

from __future__ import annotations

import pytest

from activestore.errors import MethodError, ReadonlyViolationError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(30)]


def test_change_through_a_transient_is_kept_over_a_kill(peer, store):
    model = store.create("models.Model", alias="m")

    assert model.step(0.5) == 1.5
    peer.restart()

    assert peer.connect().get("m").weights() == (1.5, 1.5, 1.5)


def test_list_changed_through_another_name_is_kept_over_a_kill(peer, store):
    model = store.create("models.Model", alias="m")

    assert [model.append_elsewhere(n) for n in range(3)] == [1, 2, 3]
    peer.restart()

    assert peer.connect().get("m").rows() == [0, 1, 2]


def test_one_list_in_two_fields_stays_one_after_reload(peer, store):
    model = store.create("models.Model", alias="m")
    assert model.append_first(2) == [1, 2]

    peer.restart()
    model = peer.connect().get("m")

    assert model.is_shared()[1] is True
    assert model.append_first(3) == [1, 2, 3]


def test_object_shared_by_two_fields_stays_one_after_reload(peer, store):
    model = store.create("models.Model", alias="m")
    model.step(1.0)

    peer.restart()
    model = peer.connect().get("m")

    assert model.is_shared()[0] is True
    assert model.step(1.0) == 3.0
    assert model.weights() == (3.0, 3.0, 3.0)


def test_method_that_raises_changes_nothing(shared):
    counter = shared.create("models.Counter", 5)

    with pytest.raises(ValueError, match="after the change") as caught:
        counter.set_then_raise(99)

    assert isinstance(caught.value, MethodError)
    assert "set_then_raise" in caught.value.remote_traceback
    assert counter.peek() == 5
    assert counter.seen == []
    assert counter.add(1) == 6


def test_method_that_raises_undoes_in_place_changes_through_a_transient(shared):
    model = shared.create("models.Model")

    with pytest.raises(LookupError):
        model.step_then_raise()

    assert model.weights() == (1.0, 1.0, 1.0)
    assert model.rows() == []


def test_readonly_method_that_assigns_a_field_is_refused(shared):
    counter = shared.create("models.Counter", 5)

    with pytest.raises(ReadonlyViolationError) as caught:
        counter.assign_in_readonly()

    assert caught.value.field == "value"
    assert counter.peek() == 5


def test_readonly_method_that_changes_in_place_is_found_where_peers_look(
    make_peer, models_file
):
    store = make_peer(check_readonly="true").connect()
    store.publish(models_file)
    model = store.create("models.Model")

    with pytest.raises(ReadonlyViolationError) as caught:
        model.read_and_append()

    assert "table" in caught.value.field
    assert model.rows() == []


def test_field_read_and_assigned_from_a_client(shared):
    counter = shared.create("models.Counter", 5)

    counter.value = 9

    assert counter.value == 9
    assert counter.add(1) == 10
