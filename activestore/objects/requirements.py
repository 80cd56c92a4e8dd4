"""What a class says it needs, against what is installed here.

Rules of this file: it reads the metadata of installed distributions and imports none.

Source: PEP 508; design section 4, `requires`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from activestore.errors import InvalidRequestError

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def missing_requirements(requires: Sequence[str]) -> list[str]:
    """Return those PEP 508 requirements that are not met here, as they were given.

    A requirement whose marker does not hold here is met. One with extras is met when
    the distribution is there and what each extra asks for is too.

    Raises:
        InvalidRequestError: a text is no PEP 508 requirement.
    """
    return [text for text in requires if not _is_met(_parse(text), frozenset())]


def names_of(requires: Iterable[str]) -> list[str]:
    """Return the distributions that requirements name, in their normal form."""
    from packaging.utils import canonicalize_name

    found: list[str] = []
    for text in requires:
        with contextlib.suppress(InvalidRequestError):
            found.append(str(canonicalize_name(_parse(text).name)))
    return found


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of these distributions that are installed here."""
    from importlib import metadata

    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = str(metadata.version(name))
    return found


def are_met_by(requires: Sequence[str], installed: Mapping[str, str]) -> bool | None:
    """Return whether what another machine told of itself meets these requirements.

    None where it does not tell: it told nothing of a distribution, or there are markers
    or extras, which only that machine can judge.

    Args:
        requires: PEP 508 requirements.
        installed: Distributions to versions, "" for one that it does not have.
    """
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion

    is_sure = True
    for text in requires:
        try:
            requirement = _parse(text)
        except InvalidRequestError:
            return None
        version = installed.get(str(canonicalize_name(requirement.name)))
        if version is None or requirement.marker is not None:
            is_sure = False
            continue
        try:
            if not version or not requirement.specifier.contains(
                version, prereleases=True
            ):
                return False
        except InvalidVersion:
            is_sure = False
        is_sure = is_sure and not requirement.extras
    return True if is_sure else None


def _parse(text: str) -> Requirement:
    # Here and below: 6 MB that only a class with requirements is worth.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement as error:
        first = str(error).splitlines()[0]
        raise InvalidRequestError(
            f"{text!r} is no PEP 508 requirement: {first}"
        ) from None


def _is_met(requirement: Requirement, asked: frozenset[str], extra: str = "") -> bool:
    from importlib import metadata

    from packaging.utils import canonicalize_name

    marker = requirement.marker
    if marker is not None and not marker.evaluate({"extra": extra}):
        return True
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    # A pre-release that somebody installed was chosen on purpose.
    if not requirement.specifier.contains(found.version, prereleases=True):
        return False
    name = canonicalize_name(requirement.name)
    return all(
        _is_met(_parse(text), asked | {key}, wanted)
        for wanted in requirement.extras
        # `a[x]` may ask for `a[y]`, and that for `a[x]` again.
        if (key := f"{name}[{wanted}]") not in asked
        for text in found.requires or ()
        if "extra" in text.partition(";")[2]
    )
