"""What a client tells when the code at the peers and the code here are not the same.

Rules of this file: it warns and never refuses; it asks the peer once per class and per
publish, never per call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from activestore import sources
from activestore.errors import ActiveStoreError, NoSuchMethodError
from activestore.model import class_name_of, fields_of, methods_of, warn

Request = Callable[..., Any]


def compare(
    request: Request, cls: type, interface: Mapping[str, Any] | None = None
) -> None:
    """Warn where the code of `cls` here is not the one that is published.

    Args:
        request: How to ask the peer.
        cls: The class here.
        interface: What is published; None to ask for it.
    """
    name = class_name_of(cls)
    if interface is None:
        try:
            interface = request("interface", class_name=name)["interface"]
        except ActiveStoreError:
            return  # Whoever asked will be told by the call itself.
    published = interface.get("code", "")
    is_comparable = published.startswith(f"{sources.python_kind()}:")
    if not is_comparable or not sources.is_plainly_loaded(cls):
        return
    if published != sources.code_digest(cls):
        warn(
            f"the class {name} here differs from the published one, whose code is what "
            f"runs at the peer; store.publish({cls.__qualname__}) publishes this one"
        )


def published_before(
    request: Request, prefix: str, digest: bytes
) -> dict[str, Mapping[str, Any]]:
    """Return the interfaces of classes that a publish of `digest` may replace.

    Args:
        request: How to ask the peer.
        prefix: What the names of the classes begin with.
        digest: The revision that is about to be published.
    """
    try:
        return {
            row["class_name"]: request("interface", class_name=row["class_name"])[
                "interface"
            ]
            for row in request("classes")
            if f"{row['class_name']}.".startswith(f"{prefix}.")
            and bytes(row["revision"]) != digest
        }
    except ActiveStoreError:
        return {}


def tell_replaced(request: Request, before: Mapping[str, Mapping[str, Any]]) -> None:
    """Warn of classes that came from elsewhere, or whose objects now lack fields."""
    for name, old in before.items():
        try:
            new = request("interface", class_name=name)["interface"]
        except ActiveStoreError:
            return
        files = old.get("file", ""), new.get("file", "")
        if all(files) and files[0] != files[1] and old.get("code") != new.get("code"):
            warn(
                f"the class {name} was published from {files[0]} and now from {files[1]}:"
                " all its objects run the new code; rename one of the two files"
            )
        lacking = [
            field
            for field in new["fields"]
            if field not in old["fields"] and field not in new.get("filled", ())
        ]
        if lacking and "filled" in new:
            warn(
                f"objects of {name} that are stored already lack {', '.join(lacking)}: "
                "give it a default in the class, or write __migrate__"
            )


def explain(error: NoSuchMethodError, cls: type | None) -> None:
    """Add to an error that the class here has what the published one lacks."""
    if cls is not None and (
        error.method in methods_of(cls) or error.method in fields_of(cls)
    ):
        error.hint = (
            f"; the class here has it: store.publish({cls.__qualname__}) publishes it"
        )
