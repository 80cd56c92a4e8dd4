"""What callers get wrong: the right class of error, with the text that helps.

Source: design section 4 ("Errors").
"""

from __future__ import annotations

import pytest

import activestore
from activestore.errors import (
    ActiveStoreError,
    AliasExistsError,
    AliasNotFoundError,
    ClassNotFoundError,
    ConfigurationError,
    InvalidRequestError,
    MethodError,
    NoSuchMethodError,
    NotActiveMethodError,
    ObjectNotFoundError,
    TooLargeError,
    UnsupportedValueError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(30)]


@pytest.fixture
def echo(shared):
    return shared.create("models.Echo", 1)


def call_by_name(store, obj, method: str, *args):
    """Call a method that the stand-in does not offer, as another client might."""
    from activestore import remote

    return store.invoke(remote.id_of(obj), method, args, {}, remote.DEFAULT_OPTIONS)


def test_method_that_no_class_has_is_no_attribute(echo):
    with pytest.raises(AttributeError, match="no_such"):
        echo.no_such()


def test_method_that_the_peer_does_not_know_is_listed_against_what_it_has(shared, echo):
    with pytest.raises(NoSuchMethodError) as caught:
        call_by_name(shared, echo, "no_such")

    assert caught.value.method == "no_such"
    assert "same" in caught.value.available


def test_method_without_the_decorator_is_not_remote(shared):
    counter = shared.create("models.Counter")

    with pytest.raises((NotActiveMethodError, NoSuchMethodError)):
        call_by_name(shared, counter, "not_marked")


@pytest.mark.parametrize(
    "name", ["__init__", "__class__", "_private", "value.real", ""]
)
def test_names_that_reach_behind_the_interface_are_refused(shared, echo, name):
    with pytest.raises(InvalidRequestError):
        call_by_name(shared, echo, name)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"third": 3})]
)
def test_wrong_arguments_are_told_as_python_tells_them(echo, args, kwargs):
    with pytest.raises(InvalidRequestError) as caught:
        echo.two(*args, **kwargs)

    assert "two()" in str(caught.value)
    assert echo.two(1) == 3


def test_alias_that_names_nothing(shared):
    with pytest.raises(AliasNotFoundError) as caught:
        shared.get("nobody")

    assert caught.value.alias == "nobody"


def test_id_that_names_nothing(shared):
    with pytest.raises(ObjectNotFoundError):
        shared.get("00" * 16).anything()


def test_class_that_was_never_published(shared):
    with pytest.raises(ClassNotFoundError) as caught:
        shared.create("models.Nothing")

    assert "models.Counter" in str(caught.value)


def test_constructor_that_gets_wrong_arguments_makes_nothing(shared):
    with pytest.raises(InvalidRequestError):
        shared.create("models.Counter", 1, 2, 3, alias="never")

    with pytest.raises(AliasNotFoundError):
        shared.get("never")


def test_deleted_object_is_not_found(shared):
    counter = shared.create("models.Counter", 1)
    shared.delete(counter)

    with pytest.raises(ObjectNotFoundError):
        counter.add(1)
    with pytest.raises(ObjectNotFoundError):
        shared.delete(counter)


def test_ref_to_a_deleted_object_fails_where_it_is_used(shared):
    holder = shared.create("models.Node", "holder")
    gone = shared.create("models.Node", "gone")
    holder.link(gone)
    shared.delete(gone)

    with pytest.raises(ObjectNotFoundError):
        holder.bump_other()


@pytest.mark.parametrize("method", ["lock", "generator"])
def test_result_that_cannot_travel_is_named_with_its_path(echo, method):
    with pytest.raises(UnsupportedValueError) as caught:
        getattr(echo, method)()

    assert "result" in caught.value.path
    assert caught.value.type_name.split(".")[-1] in {"lock", "generator"}


def test_argument_that_cannot_travel_never_leaves(echo):
    import threading

    with pytest.raises(UnsupportedValueError):
        echo.same({"inside": threading.Lock()})

    assert echo.same(1) == 1


def test_argument_over_the_limit_is_refused_by_its_size(make_peer, models_file):
    store = make_peer(message_bytes_max=1 << 20).connect()
    store.publish(models_file)
    echo = store.create("models.Echo")

    assert echo.size_of(bytes(900_000)) == 900_000
    with pytest.raises(TooLargeError) as caught:
        echo.size_of(bytes(2 << 20))
    with pytest.raises(TooLargeError):
        echo.same([bytes(60_000)] * 30)

    assert caught.value.limit == 1 << 20
    assert "message_bytes_max" in str(caught.value)
    assert echo.same(1) == 1


@pytest.mark.parametrize("parts", [(1, 3 << 20), (30, 60_000)])
def test_result_over_the_limit_is_refused_by_its_size(make_peer, models_file, parts):
    store = make_peer(message_bytes_max=1 << 20).connect()
    store.publish(models_file)
    echo = store.create("models.Echo")

    with pytest.raises(TooLargeError) as caught:
        echo.rows(*parts)

    assert caught.value.limit == 1 << 20
    assert len(echo.rows(10, 60_000)) == 10


def test_result_of_many_small_parts_over_a_frame_is_refused(echo):
    """24 MB that all travel inline: more than one record may hold."""
    with pytest.raises(TooLargeError):
        echo.rows(400, 60_000)

    assert echo.same(1) == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("huge text", ValueError),
        ("no text", MethodError),
        ("odd fields", ActiveStoreError),
        ("huge fields", ActiveStoreError),
        ("keyboard", MethodError),
        ("stop", ActiveStoreError),
        ("group", OSError),
        ("odd text", ValueError),
        ("odd argument", KeyError),
        ("several", MethodError),
        ("base", MethodError),
    ],
)
def test_error_that_is_hard_to_tell_is_told_all_the_same(echo, kind, expected):
    with pytest.raises(expected) as caught:
        echo.raise_odd(kind)

    assert len(str(caught.value)) < 40_000
    assert echo.same(1) == 1


@pytest.mark.parametrize("kind", ["odd key", "odd text", "odd pickle"])
def test_result_that_cannot_travel_for_an_odd_reason_is_told(echo, kind):
    with pytest.raises(UnsupportedValueError, match="result") as caught:
        echo.return_odd(kind)

    str(caught.value).encode()
    assert echo.same(1) == 1


def test_field_that_cannot_be_kept_for_an_odd_reason_changes_nothing(echo):
    before = echo.value
    with pytest.raises((MethodError, UnsupportedValueError)) as caught:
        echo.keep_odd()

    assert "I stay here" in str(caught.value)
    assert echo.value == before


def test_alias_of_another_object_is_taken(shared):
    counter = shared.create("models.Counter", 1, alias="taken")

    with pytest.raises(AliasExistsError) as caught:
        shared.create("models.Counter", 2, alias="taken")

    assert caught.value.alias == "taken"
    assert shared.get("taken") is counter
    shared.delete(counter)


def test_deleting_an_object_frees_its_alias_for_good(peer, store):
    store.delete(store.create("models.Counter", 1, alias="name"))
    with pytest.raises(AliasNotFoundError):
        store.get("name")

    store.create("models.Counter", 2, alias="name")
    peer.restart()

    assert peer.connect().get("name").peek() == 2


def test_refused_alias_leaves_no_object_behind(shared):
    counter = shared.create("models.Counter", 1, alias="one-only")
    before = len(list(shared.objects()))

    with pytest.raises(AliasExistsError):
        shared.create("models.Counter", 2, alias="one-only")

    assert len(list(shared.objects())) == before
    shared.delete(counter)


def test_endpoint_that_is_none(monkeypatch):
    monkeypatch.delenv("ACTIVESTORE_ENDPOINT", raising=False)

    with pytest.raises(ConfigurationError):
        activestore.connect()
    with pytest.raises(ConfigurationError):
        activestore.connect("no address")


def test_closed_store_says_so(shared_peer):
    store = activestore.connect(shared_peer.endpoint)
    counter = store.create("models.Counter")
    store.close()

    with pytest.raises(InvalidRequestError, match="closed"):
        counter.add(1)
