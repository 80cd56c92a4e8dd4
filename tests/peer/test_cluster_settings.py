"""Settings that place a peer among others: its cluster, its zone, what it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from activestore.errors import ConfigurationError
from activestore.peer import machine
from activestore.peer.config import PeerConfig
from activestore.peer.config_sources import load_config


@pytest.mark.parametrize("word", ["a b", "a/b", "..", ".hidden", "ä", "x" * 65])
@pytest.mark.parametrize("setting", ["cluster", "zone", "accelerators"])
def test_word_that_is_no_name(setting: str, word: str) -> None:
    """They travel in records of peers, and stand in paths and names."""
    value = (word,) if setting == "accelerators" else word

    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={setting: value})

    assert caught.value.setting == setting
    assert repr(word) in caught.value.reason


def test_cluster_without_a_name_is_refused_a_zone_is_not() -> None:
    with pytest.raises(ConfigurationError):
        load_config(flags={"cluster": ""})

    assert load_config(flags={"zone": ""}).zone == ""


def test_more_accelerators_than_a_record_carries_are_refused() -> None:
    words = tuple(f"a{number}" for number in range(17))

    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={"accelerators": words})

    assert "at most 16" in caught.value.reason


def test_accelerators_are_those_that_the_system_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    assert PeerConfig().accelerators == ()

    (tmp_path / "nvidia0").touch()

    assert PeerConfig().accelerators == ("cuda",)
    assert PeerConfig(accelerators=("tpu",)).accelerators == ("tpu",)
