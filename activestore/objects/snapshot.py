"""An object's fields to ObjectState bytes and back, and what changed in between.

A *plain* field's value is immutable and cannot be shared in a way that matters: None,
bool, numbers, short str and bytes, dates, Decimal, UUID, refs, and tuples and
frozensets of such. It is encoded alone, and compared by identity first. All others are
pickled together as one *graph*, compared by digest. bytes of PLAIN_BYTES_MAX or more
are in the graph too, as buffers beside it; so are longer texts and tuples.

A graph whose stream is longer than STREAM_INLINE_BYTES_MAX lies in the first buffers,
cut to STREAM_CHUNK_BYTES, so that what is appended to a long list writes only its last
chunks; `ObjectState.graph` is then `cuts.CUT` and the count of these buffers. Nobody else
reads it.

Final fields are compared by identity alone. A Final field that is not plain lies in the
graph, but the digest that finds changes is of the *other* graph fields; only when these
changed is the whole graph pickled anew, and then a buffer that is reached through Final
fields alone keeps the digest it had. So a large Final array costs nothing per call.

Rules of this file: stored values are those of the instance (a default on the class is
code, not state; of one that can change in place each instance has its own copy);
nothing is imported for a value that is not there; buffers that `take` and `changes`
return are live memory.

Source: design sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    RemoteProtocolError,
    RequirementError,
    UnsupportedValueError,
)
from activestore.model import (
    ID_SLOT,
    check_attributes,
    copied_defaults,
    fields_of,
)
from activestore.objects import pickles
from activestore.objects.cuts import CUT, CUT_COUNT, join_stream
from activestore.objects.digests import BufferDigest, address_of, digest_of, owned
from activestore.objects.pickles import Dump, LargeBytes, NeedsValueError, RefOf
from activestore.objects.plain import is_plain
from activestore.wire import values
from activestore.wire.state import ObjectState, StateDelta

STREAM_INLINE_BYTES_MAX = 1024 * 1024
STREAM_CHUNK_BYTES = 256 * 1024

_MISSING: Any = object()
_IN_GRAPH: Any = object()  # Never the value of a field, so always looked at.


class Snapshot(NamedTuple):
    """A committed state, as far as it is needed to see what changed since.

    `values`: what an unchanged field holds, by identity; _IN_GRAPH for those of the
    graph that may change in place. `encodings`: of the plain fields. `graph_fields`:
    all of the graph, Final ones included. `graph_digest`: of the graph without Final
    fields; None where it is not known, and then the graph counts as changed. `buffers`:
    digest and size of each buffer of the state, in order. `final_digests`: of buffers
    that only Final fields reach, by address and size.
    """

    values: Mapping[str, Any]
    encodings: Mapping[str, bytes]
    graph_fields: tuple[str, ...] = ()
    graph_digest: bytes | None = None
    graph_bytes: int = 0
    buffers: Sequence[BufferDigest] = ()
    final_digests: Mapping[tuple[int, int], bytes] = {}

    @property
    def state_bytes(self) -> int:
        """The size of the whole state in bytes."""
        plain = sum(map(len, self.encodings.values()))
        return plain + self.graph_bytes + sum(size for _, size in self.buffers)


class _Written(NamedTuple):
    """A graph as it is written, and what a later comparison needs."""

    graph: bytes
    graph_fields: tuple[str, ...]
    buffers: list[memoryview]
    digests: list[BufferDigest]
    final_digests: dict[tuple[int, int], bytes]


class _Compared(NamedTuple):
    """The part of the graph that may change, dumped and digested."""

    dump: Dump
    digest: bytes
    known: dict[tuple[int, int], bytes]


_NO_GRAPH = _Written(b"", (), [], [], {})


class Snapshotter:
    """Takes, loads and compares the states of the objects of one class revision."""

    def __init__(  # noqa: PLR0913 - keyword-only, each a fact of the class
        self,
        cls: type,
        *,
        class_name: str,
        revision: bytes,
        class_version: int,
        ref_of: RefOf,
        resolve: Callable[[bytes], object],
        by_value: bool = False,
    ) -> None:
        self._cls = cls
        self._class_name = class_name
        self._revision = revision
        self._class_version = class_version
        self._ref_of = ref_of
        self._resolve = resolve
        self._by_value = by_value
        fields = fields_of(cls)
        self._names = tuple(fields)
        self._finals = frozenset(
            name for name, field in fields.items() if field.is_final
        )
        self._defaults = copied_defaults(cls)
        # Attributes that were looked at: fields, and what is known to be transient.
        self._checked = {*self._names, ID_SLOT}

    # -- to bytes and back -------------------------------------------------------------

    def take(self, obj: Any) -> tuple[ObjectState, Snapshot]:
        """Return the whole state of `obj`, and what to compare it with later.

        Raises:
            UnsupportedValueError: a field holds what cannot be kept; names the path.
            InvalidRequestError: it has attributes, but its class annotates none.
        """
        attributes = obj.__dict__
        if not attributes.keys() <= self._checked:
            self._check(attributes)
        fields: dict[str, bytes] = {}
        held: dict[str, Any] = {}
        graph: dict[str, Any] | None = None
        for name in self._names:
            value = attributes.get(name, _MISSING)
            if value is _MISSING:
                continue
            encoded = self._encode(value)
            if encoded is None:
                graph = {} if graph is None else graph
                graph[name] = value
            else:
                fields[name] = encoded
                held[name] = value
        name, revision, version = self._class_name, self._revision, self._class_version
        if graph is None:
            state = ObjectState(name, revision, version, fields, b"", (), ())
            return state, Snapshot(held, fields)
        compared = self._dump_open(graph)
        written = self._write(graph, compared, {})
        self._hold(held, graph)
        state = ObjectState(
            name, revision, version, fields, written.graph, written.graph_fields,
            written.buffers,
        )  # fmt: skip
        return state, _snapshot(held, fields, compared, written)

    def load(
        self, obj: Any, state: ObjectState, *, is_reader: bool = False
    ) -> Snapshot:
        """Set the fields of `state` in `obj`, a bare instance; no user method runs.

        Buffers in writable memory at a multiple of 64 bytes become the memory of the
        object, without a copy; others are copied.

        Args:
            obj: A bare instance.
            state: Its state; buffers are bytes or memoryviews, not FileBuffers.
            is_reader: Only readonly methods will run: skip the digests (and `changes`
                would then find the whole graph changed).

        Raises:
            RequirementError: a module that the state needs is not installed.
            InvalidRequestError: the state does not fit the code.
            RemoteProtocolError: the state is damaged.
        """
        attributes = obj.__dict__
        held: dict[str, Any] = {}
        for name, encoded in state.fields.items():
            value = values.decode(encoded, (), resolve=self._resolve)
            attributes[name] = held[name] = value
        encodings = dict(state.fields)
        if not state.graph and not self._defaults:
            return Snapshot(held, encodings)
        stream, taken = join_stream(state)
        blocks: Any = state.buffers
        memory = [owned(block) for block in blocks[taken:]]
        if state.graph:
            attributes.update(self._unpickle(stream, memory))
        graph = {
            name: attributes[name] for name in state.graph_fields if name in self._names
        }
        # What the state lacks and the class brings is as good as stored: it is written
        # when it changes.
        added = [n for n in self._defaults if n in attributes and n not in held]
        added = [name for name in added if name not in graph]
        graph.update((name, attributes[name]) for name in added)
        self._hold(held, graph)
        fields, size = (*state.graph_fields, *added), len(state.graph)
        if is_reader:
            return Snapshot(held, encodings, fields, None, size)
        # Pickled again, because pickle records which equal strings are one object, and
        # that differs after a load. The memory is the same, so it is digested once.
        known: dict[tuple[int, int], bytes] = {}
        digests = [(digest_of(piece), len(piece)) for piece in blocks[:taken]]
        for view in memory:
            digests.append((digest_of(view), view.nbytes))
            known[address_of(view), view.nbytes] = digests[-1][0]
        compared = self._dump_open(graph, known)
        final_digests = {k: v for k, v in known.items() if k not in compared.known}
        return Snapshot(
            held, encodings, fields, compared.digest, size, digests, final_digests
        )

    def _unpickle(self, stream: bytes, memory: Sequence[memoryview]) -> dict[str, Any]:
        try:
            found = pickles.unpickle(
                stream, buffers=memory, resolve=self._resolve, scope=self._cls
            )
        except ActiveStoreError:
            raise
        except ModuleNotFoundError as error:
            raise RequirementError(
                self._class_name, (error.name or str(error),)
            ) from error
        except (AttributeError, ImportError) as error:
            raise InvalidRequestError(
                f"the stored state does not fit this code: {error}; publish a "
                "version that still has it, or one with __migrate__",
                self._class_name,
            ) from error
        if type(found) is not dict:
            raise RemoteProtocolError(
                f"a graph is a {type(found).__name__}, not a dict"
            )
        return found

    # -- what changed
    # --------------------------------------------------------------------

    def changes(
        self, obj: Any, before: Snapshot, only: tuple[str, ...] | None = None
    ) -> tuple[StateDelta, Snapshot] | None:
        """Return what changed since `before` and the new snapshot, None for nothing.

        Args:
            obj: The object.
            before: What `take`, `load` or the last `changes` returned for it.
            only: Compare just these fields. The graph is one: where one of them is in
            it,
                all is compared.

        Raises:
            UnsupportedValueError: a field holds what cannot be kept; names the path.
            InvalidRequestError: it has attributes, but its class annotates none.
        """
        if not obj.__dict__.keys() <= self._checked:
            self._check(obj.__dict__)
        current = obj.__dict__.get
        held = before.values.get
        for name in self._names if only is None else only:
            if current(name, _MISSING) is not held(name, _MISSING):
                return self._compare(obj.__dict__, before, only)
        return None

    def first_difference(self, obj: Any, before: Snapshot) -> str | None:
        """Return the name of a field that changed since `before`, None for none.

        Where several fields share the graph and it cannot be told which of them
        changed, their names are joined by commas.
        """
        attributes = obj.__dict__
        graph: dict[str, Any] = {}
        for name in self._names:
            value = attributes.get(name, _MISSING)
            known = before.values.get(name, _MISSING)
            if value is known:
                continue
            if known is _IN_GRAPH and value is not _MISSING:
                graph[name] = value
            elif value is _MISSING or self._encode(value) != before.encodings.get(
                name, b""
            ):
                return name
        if not graph or before.graph_digest is None:
            return None
        if self._dump_open(graph).digest == before.graph_digest:
            return None
        known_buffers = set(before.buffers)
        for name, value in graph.items():
            buffers = self._dump({name: value}).buffers
            if any((digest_of(b), b.nbytes) not in known_buffers for b in buffers):
                return name
        return ", ".join(graph)

    def _compare(
        self,
        attributes: dict[str, Any],
        before: Snapshot,
        only: tuple[str, ...] | None,
    ) -> tuple[StateDelta, Snapshot] | None:
        """Look at each field that is not the same object as before."""
        fields: dict[str, bytes] = {}
        removed: list[str] = []
        held = dict(before.values)
        is_graph = False
        for name in self._names if only is None else only:
            value = attributes.get(name, _MISSING)
            if value is before.values.get(name, _MISSING):
                continue
            encoded = None if value is _MISSING else self._encode(value)
            if encoded is None:
                is_graph = (
                    is_graph or value is not _MISSING or name in before.graph_fields
                )
                held.pop(name, None)
                if name in before.encodings:
                    removed.append(name)
                continue
            held[name] = value
            is_graph = is_graph or name in before.graph_fields
            if before.encodings.get(name) != encoded:
                fields[name] = encoded
        if not is_graph:
            return self._plain_delta(before, held, fields, removed)
        if only is not None:
            return self._compare(attributes, before, None)
        return self._graph_delta(attributes, before, held, fields, removed)

    def _plain_delta(
        self,
        before: Snapshot,
        held: dict[str, Any],
        fields: dict[str, bytes],
        removed: list[str],
    ) -> tuple[StateDelta, Snapshot] | None:
        if not fields and not removed:
            return None
        encodings = {**before.encodings, **fields}
        for name in removed:
            del encodings[name]
        # The graph is as it was.
        delta = StateDelta(
            self._class_name, self._revision, self._class_version, fields, removed,
            None, (), (),
        )  # fmt: skip
        # Not _replace, which takes longer than all the rest here.
        return delta, Snapshot(held, encodings, *before[2:])

    def _graph_delta(
        self,
        attributes: dict[str, Any],
        before: Snapshot,
        held: dict[str, Any],
        fields: dict[str, bytes],
        removed: list[str],
    ) -> tuple[StateDelta, Snapshot] | None:
        encodings = {**before.encodings, **fields}
        for name in removed:
            del encodings[name]
        graph = {
            name: attributes[name]
            for name in self._names
            if name in attributes and name not in encodings
        }
        is_same_shape = set(graph) == set(before.graph_fields) and all(
            before.values[name] is graph[name] for name in self._finals & graph.keys()
        )
        compared = self._dump_open(graph)
        is_same = is_same_shape and compared.digest == before.graph_digest
        if is_same:
            return self._plain_delta(before, held, fields, removed)
        written = (
            self._write(graph, compared, before.final_digests) if graph else _NO_GRAPH
        )
        self._hold(held, graph)
        where = {digest: i for i, digest in enumerate(before.buffers)}
        buffers = [
            where.get(digest, buffer)
            for digest, buffer in zip(written.digests, written.buffers, strict=True)
        ]
        delta = StateDelta(
            self._class_name, self._revision, self._class_version, fields, removed,
            written.graph, written.graph_fields, buffers,
        )  # fmt: skip
        return delta, _snapshot(held, encodings, compared, written)

    def _check(self, attributes: dict[str, Any]) -> None:
        new = {n: v for n, v in attributes.items() if n not in self._checked}
        check_attributes(self._cls, new)
        self._checked.update(new)

    # -- plain values ------------------------------------------------------------------

    def _encode(self, value: Any) -> bytes | None:
        """Return the encoding of a plain value, None for one of the graph."""
        if not is_plain(value):
            return None
        try:
            encoded, buffers = values.encode(value, ref_of=self._ref_of)
        except (UnsupportedValueError, UnicodeError):
            return None  # Such as a text with half a surrogate pair: pickle can.
        return None if buffers else encoded

    # -- the graph
    # -----------------------------------------------------------------------

    def _hold(self, held: dict[str, Any], graph: Mapping[str, Any]) -> None:
        for name, value in graph.items():
            held[name] = value if name in self._finals else _IN_GRAPH

    def _dump_open(
        self,
        graph: Mapping[str, Any],
        known: Mapping[tuple[int, int], bytes] | None = None,
    ) -> _Compared:
        """Dump the fields that may change in place, and digest them.

        Args:
            graph: All fields of the graph.
            known: Digests that need not be computed again, by address and size.
        """
        finals = self._finals & graph.keys()
        still = {name: graph[name] for name in graph if name not in finals}
        if not still:
            return _Compared(Dump(b"", []), b"", {})
        dump = self._dump(still, {id(graph[name]): name for name in finals})
        found: dict[tuple[int, int], bytes] = {}
        parts = [digest_of(dump.stream)]
        for view in dump.buffers:
            key = (address_of(view), view.nbytes)
            digest = (known or {}).get(key) if key[0] else None
            found[key] = digest = digest or digest_of(view)
            parts.append(digest)
        return _Compared(dump, digest_of(b"".join(parts)), found)

    def _write(
        self,
        graph: Mapping[str, Any],
        compared: _Compared,
        final_digests: Mapping[tuple[int, int], bytes],
    ) -> _Written:
        """Return the whole graph as it is stored, with the digest of each buffer."""
        has_finals = not self._finals.isdisjoint(graph)
        dump = self._dump(graph) if has_finals else compared.dump
        chunks = _cut_stream(dump.stream)
        digests = [(digest_of(chunk), chunk.nbytes) for chunk in chunks]
        kept: dict[tuple[int, int], bytes] = {}
        for view in dump.buffers:
            key = (address_of(view), view.nbytes)
            digest = compared.known.get(key) if key[0] else None
            if digest is None:
                digest = final_digests.get(key) if key[0] else None
                kept[key] = digest = digest or digest_of(view)
            digests.append((digest, view.nbytes))
        stored = CUT_COUNT.pack(CUT, len(chunks)) if chunks else dump.stream
        return _Written(stored, tuple(graph), chunks + dump.buffers, digests, kept)

    def _dump(
        self, graph: Mapping[str, Any], skipped: Mapping[int, str] | None = None
    ) -> Dump:
        wrapped = {
            name: LargeBytes(value) if type(value) is bytes else value
            for name, value in graph.items()
        }
        try:
            return self._dump_by_name_or_value(wrapped, skipped)
        except (ActiveStoreError, MemoryError):
            raise
        except Exception as error:
            named = {f'field["{name}"]': value for name, value in graph.items()}
            raise pickles.culprit_of(named, error, ref_of=self._ref_of) from error

    def _dump_by_name_or_value(
        self, graph: Mapping[str, Any], skipped: Mapping[int, str] | None
    ) -> Dump:
        if not self._by_value:
            try:
                return pickles.dump(graph, ref_of=self._ref_of, skipped=skipped)
            except (NeedsValueError, *pickles.PICKLE_ERRORS):
                pass
            # Stays so: the same state must give the same bytes each time.
            found = pickles.dump(
                graph, ref_of=self._ref_of, by_value=True, skipped=skipped
            )
            self._by_value = True
            return found
        return pickles.dump(graph, ref_of=self._ref_of, by_value=True, skipped=skipped)


def migrate(cls: Any, old_version: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an older version as the class's `__migrate__` makes them.

    A class without it gets the fields as they were. What `__migrate__` raises passes
    through: it is the user's, a MethodError to whoever called.

    Raises:
        InvalidRequestError: it did not return a dict of names.
    """
    function = getattr(cls, "__migrate__", None)
    if function is None:
        return fields
    raw = next(
        b.__dict__["__migrate__"] for b in cls.__mro__ if "__migrate__" in b.__dict__
    )
    if isinstance(raw, (classmethod, staticmethod)):
        found = function(old_version, fields)
    else:
        found = function(cls, old_version, fields)  # The decorator was forgotten.
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InvalidRequestError(
            f"returned {type(found).__name__}, expected the dict of fields",
            f"{cls.__qualname__}.__migrate__",
        )
    return found


def _snapshot(
    held: dict[str, Any],
    encodings: dict[str, bytes],
    compared: _Compared,
    written: _Written,
) -> Snapshot:
    return Snapshot(
        held, encodings, written.graph_fields, compared.digest, len(written.graph),
        written.digests, written.final_digests,
    )  # fmt: skip


def _cut_stream(stream: bytes) -> list[memoryview]:
    if len(stream) <= STREAM_INLINE_BYTES_MAX:
        return []
    view = memoryview(stream)
    return [
        view[start : start + STREAM_CHUNK_BYTES]
        for start in range(0, len(stream), STREAM_CHUNK_BYTES)
    ]
