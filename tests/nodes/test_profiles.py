"""Every profile in nodes/ is read by the real parser, so that none can rot."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

import pytest

from activestore.core.profiles import EDGE, LAN, WAN
from activestore.peer.config import SETTINGS, PeerConfig, check_listen
from activestore.peer.config_sources import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ["cloud-server", "edge-board", "laptop"]
FILES = {"Containerfile", "README.md", "activestore.service", "peer.toml"}


def keys_of(path: Path) -> list[str]:
    """Return the settings that a file names, in its order."""
    return re.findall(r"^(\w+) *=", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_folder_with_a_peer_file_is_tested() -> None:
    found = {path.parent.name for path in (ROOT / "nodes").glob("*/peer.toml")}

    assert found == set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_have_the_same_files(profile: str) -> None:
    """`diff` between two profiles is the documentation of their difference."""
    assert {path.name for path in (ROOT / "nodes" / profile).iterdir()} == FILES


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_starts_as_it_stands(profile: str) -> None:
    """No keys, no special account: `start --config` works for whoever clones this."""
    config = load_config(ROOT / "nodes" / profile / "peer.toml")

    check_listen(config)
    assert not config.insecure


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_holds_only_what_differs(profile: str) -> None:
    path = ROOT / "nodes" / profile / "peer.toml"
    fixed = {
        name: PeerConfig.__dataclass_fields__[name].default
        for name, about in SETTINGS.items()
        if about.automatic is None
    }
    config = load_config(path)

    same = [name for name in keys_of(path) if fixed.get(name) == getattr(config, name)]

    assert keys_of(path)
    assert same == []


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_says_why_for_each_setting(profile: str) -> None:
    text = (ROOT / "nodes" / profile / "peer.toml").read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        assert block.startswith("# "), f"no reason: {block!r}"


def test_edge_board_saves_power_and_memory() -> None:
    config = load_config(ROOT / "nodes" / "edge-board" / "peer.toml")

    assert config.spin_us == 0
    assert config.executors == 1
    assert config.executors_max * config.executor_memory_mb <= 1024


@pytest.mark.parametrize("profile", PROFILES)
def test_unit_starts_the_profile_and_leaves_time_to_drain(profile: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keep the case
    unit.read(ROOT / "nodes" / profile / "activestore.service", encoding="utf-8")

    command = unit["Service"]["ExecStart"]

    assert re.search(r"activestore-node start --config \S+/peer\.toml", command)
    assert int(unit["Service"]["TimeoutStopSec"]) >= 30
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Install"]["WantedBy"]


@pytest.mark.parametrize("profile", PROFILES)
def test_container_copies_what_is_there_and_stays_unprivileged(profile: str) -> None:
    text = (ROOT / "nodes" / profile / "Containerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)

    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
    assert f"nodes/{profile}/peer.toml" in text
    assert re.search(r"^USER activestore$", text, re.MULTILINE)
    assert '"activestore-node", "start"' in text


@pytest.mark.parametrize("profile", [LAN, WAN, EDGE], ids=lambda one: one.name)
def test_numbers_of_membership_stand_in_a_file_with_a_reason_for_each(profile) -> None:
    path = ROOT / "nodes" / "membership" / f"{profile.name}.toml"
    text = path.read_text(encoding="utf-8")

    values = {key: value for key, value in profile._asdict().items() if key != "name"}
    reasons = re.findall(r"^# .+\n(\w+) *=", text, re.MULTILINE)

    assert tomllib.loads(text) == values
    assert reasons == list(values)
