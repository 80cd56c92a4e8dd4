"""How many copies a peer's profile asks for. Source: issue 4, "in peer profiles as default"."""

from __future__ import annotations

from pathlib import Path

import pytest

from activestore.errors import ConfigurationError
from activestore.peer.config_sources import load_config


def test_profile_says_how_many_copies_and_whether_with_a_witness(
    tmp_path: Path,
) -> None:
    path = tmp_path / "peer.toml"
    path.write_text("replicas = 2\nwitness = true\n")

    plain, witnessed = load_config(), load_config(str(path))

    assert (plain.replicas, plain.witness) == (1, False)
    assert (witnessed.replicas, witnessed.witness) == (2, True)


@pytest.mark.parametrize("replicas", [0, 8])
def test_count_out_of_range_is_refused(replicas: int) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 7 peers") as caught:
        load_config(flags={"replicas": replicas})

    assert caught.value.setting == "replicas"


@pytest.mark.parametrize("replicas", [1, 3])
def test_witness_is_for_two_copies(replicas: int) -> None:
    with pytest.raises(ConfigurationError, match="expected replicas = 2") as caught:
        load_config(flags={"replicas": replicas, "witness": True})

    assert caught.value.setting == "witness"
