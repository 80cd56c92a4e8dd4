"""The same store for asyncio: calls, fields and listings are awaited.

    async with await activestore.aio.connect("tcp://127.0.0.1:7400") as store:
        p = await store.get("hits")
        await p.add(1); await p.value
        async for row in p.train.stream(epochs=10): ...

Rules of this file: the thread-based client does the work; this turns its futures into
awaitables and its blocking questions into threads.

Source: design section 4.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from activestore import remote
from activestore.client import client
from activestore.client.groups import Group
from activestore.client.proxy import RemoteClass
from activestore.client.streams import NOTHING, Items
from activestore.errors import InvalidRequestError
from activestore.ids import ObjectId
from activestore.remote import CallOptions


async def connect(
    endpoint: str | Sequence[str] | None = None,
    *,
    timeout_s: float = 30.0,
    name: str = "",
    unpickle: bool = False,
) -> AsyncStore:
    """Connect to a peer; see activestore.connect."""
    store = await asyncio.to_thread(
        client.connect, endpoint, timeout_s=timeout_s, name=name, unpickle=unpickle
    )
    return AsyncStore(store)


class AsyncStore:
    """A Store whose methods are coroutines; proxies are awaited too."""

    def __init__(self, store: client.Store) -> None:
        self._store = store
        blocking = store.resolve
        # Also inside containers.
        store.resolve = lambda payload: self._wrap(blocking(payload))

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.to_thread(self._store.close)

    def _wrap(self, value: Any) -> Any:
        """Return an awaited stand-in for a blocking one, anything else as it is."""
        object_id = remote.id_of(value)
        if object_id is None or not isinstance(value, remote.Proxy):
            return value
        return remote.make_proxy(type(value), object_id, self)

    # -- the Caller of its proxies -----------------------------------------------------

    async def invoke(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> Any:  # fmt: skip
        """Run a method; return its result, a pair where info is wanted."""
        future = self._store.submit(object_id, method, args, kwargs, options)
        result = await asyncio.wrap_future(future)
        if options.with_info:
            return self._wrap(result[0]), result[1]
        return self._wrap(result)

    def submit(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> asyncio.Task[Any]:  # fmt: skip
        """Start a method; return a task of its result."""
        return asyncio.ensure_future(
            self.invoke(object_id, method, args, kwargs, options)
        )

    def stream(
        self, object_id: ObjectId, method: str, args: tuple[Any, ...],
        kwargs: dict[str, Any], options: CallOptions,
    ) -> AsyncItems:  # fmt: skip
        """Start a generator method; iterate its items with `async for`."""
        return AsyncItems(self._store.stream(object_id, method, args, kwargs, options))

    async def get_field(self, object_id: ObjectId, field: str) -> Any:
        """Read a field: `await p.value`."""
        return self._wrap(
            await asyncio.to_thread(self._store.get_field, object_id, field)
        )

    def set_field(self, object_id: ObjectId, field: str, value: Any) -> None:
        """Refuse: an assignment cannot be awaited."""
        raise InvalidRequestError(
            "an assignment cannot be awaited; use `await store.set(p, name, value)`",
            field,
        )

    # -- the Store's names -------------------------------------------------------------

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a blocking function of the store in a thread; its result can be awaited on."""
        return self._wrap(await asyncio.to_thread(function, *args, **kwargs))

    async def get(self, name: Any) -> Any:
        """Return the object with this alias, id or ref."""
        return await self.run(self._store.get, name)

    async def set(self, obj: Any, field: str, value: Any) -> None:
        """Assign a field; durable on return."""
        object_id = remote.id_of(obj)
        if object_id is None:
            raise InvalidRequestError("it is not persistent", type(obj).__name__)
        await asyncio.to_thread(self._store.set_field, object_id, field, value)

    async def cls(self, class_name: str) -> AsyncClass:
        """Return a stand-in of a published class: `await C(5)`, `await C.get_by_alias(...)`.

        Raises:
            ClassNotFoundError: it was never published.
        """
        return AsyncClass(self, await asyncio.to_thread(self._store.cls, class_name))

    async def create(self, class_name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Make an object of a published class."""
        return await self.run(self._store.create, class_name, *args, **kwargs)

    async def persist(self, objects: Any, /, **options: Any) -> None:
        """Keep objects and all they reach."""
        await asyncio.to_thread(lambda: self._store.persist(objects, **options))

    async def publish(self, what: Any, *, data_files: Sequence[str] = ()) -> list[str]:
        """Publish code."""
        found: list[str] = await self.run(
            self._store.publish, what, data_files=data_files
        )
        return found

    async def locate(self, obj: Any) -> dict[str, Any]:
        """Return where an object lives."""
        found: dict[str, Any] = await self.run(self._store.locate, obj)
        return found

    async def move(
        self, obj: Any, peer: str, *, recursive: bool = False
    ) -> list[bytes]:
        """Bring an object to another peer; see Store.move."""
        return await asyncio.to_thread(
            lambda: self._store.move(obj, peer, recursive=recursive)
        )

    async def replicate(
        self, obj: Any, replicas: int | None = None, **options: Any
    ) -> Group:
        """Have an object kept by so many peers; see Store.replicate."""
        return await asyncio.to_thread(
            lambda: self._store.replicate(obj, replicas, **options)
        )

    async def group(self, obj: Any) -> Group:
        """Return who has an object."""
        return await asyncio.to_thread(self._store.group, obj)

    async def force(self, obj: Any, **options: bool) -> Group:
        """Make the connected peer's copy the object; see Store.force."""
        return await asyncio.to_thread(lambda: self._store.force(obj, **options))

    async def discard(self, obj: Any) -> None:
        """Remove the connected peer's quarantined copy of an object."""
        await asyncio.to_thread(self._store.discard, obj)

    async def export(self, obj: Any) -> bytes:
        """Return the connected peer's copy of an object as a file."""
        return await asyncio.to_thread(self._store.export, obj)

    async def bring_back(self, data: bytes, **options: Any) -> ObjectId:
        """Make a new object of what `export` returned; see Store.bring_back."""
        return await asyncio.to_thread(lambda: self._store.bring_back(data, **options))

    async def delete(self, obj: Any) -> None:
        """Delete an object."""
        await self.run(self._store.delete, obj)

    async def objects(self, alias_prefix: str = "") -> AsyncIterator[dict[str, Any]]:
        """Iterate over what is stored."""
        rows = self._store.objects(alias_prefix)
        end: Any = object()
        while (row := await asyncio.to_thread(next, rows, end)) is not end:
            yield row

    async def peers(self) -> list[dict[str, Any]]:
        """Return the peers that the connected peer knows."""
        found: list[dict[str, Any]] = await self.run(self._store.peers)
        return found

    async def status(self) -> dict[str, Any]:
        """Return what the connected peer says of itself."""
        found: dict[str, Any] = await self.run(self._store.status)
        return found

    async def request(self, operation: str, /, **parameters: Any) -> Any:
        """Ask the peer itself."""
        return await asyncio.to_thread(
            lambda: self._store.request(operation, **parameters)
        )


class AsyncClass:
    """A published class without its code, for coroutines."""

    def __init__(self, store: AsyncStore, blocking: RemoteClass) -> None:
        self._store = store
        self._blocking = blocking
        self.__doc__ = blocking.__doc__

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Create an object; see Store.create."""
        return await self._store.create(self._blocking.class_name, *args, **kwargs)

    async def get_by_alias(self, alias: str) -> Any:
        """Return the object that `alias` names.

        Raises:
            AliasNotFoundError: no object has that alias.
            InvalidRequestError: it is of another class.
        """
        return await self._store.run(self._blocking.get_by_alias, alias)

    def __repr__(self) -> str:
        return repr(self._blocking)


class AsyncItems:
    """The items of a stream, for `async for`; no thread waits for them.

    Leaving the loop, cancelling its task or `aclose` ends the method at the peer.
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self._event = asyncio.Event()
        items.wake(_Waker(asyncio.get_running_loop(), self._event))

    def __aiter__(self) -> AsyncItems:
        return self

    async def __anext__(self) -> Any:
        try:
            while True:
                self._event.clear()
                found = self._items.take()
                if found is not NOTHING:
                    return found
                await self._event.wait()
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException:
            self._items.close()
            raise

    async def aclose(self) -> None:
        """End the stream."""
        self._items.close()


class _Waker:
    """Wakes a reader from another thread; it must not keep the reader itself alive."""

    def __init__(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        self._loop = loop
        self._event = event

    def set(self) -> None:
        """Something has come."""
        with contextlib.suppress(RuntimeError):  # The loop has been closed.
            self._loop.call_soon_threadsafe(self._event.set)
