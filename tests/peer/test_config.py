"""Settings: where they come from, what is refused, and what the machine decides."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from activestore.errors import ConfigurationError, InvalidRequestError
from activestore.peer import machine
from activestore.peer.config import (
    KINDS,
    SETTINGS,
    PeerConfig,
    check_listen,
)
from activestore.peer.config_sources import CONFIG_FILE_BYTES_MAX, load_config

MIB = 1024 * 1024


@pytest.fixture
def peer_toml(tmp_path: Path) -> Path:
    """A file to write settings into."""
    return tmp_path / "peer.toml"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 4 cores, 1000 MiB of memory and 10,000 MiB of free disk."""
    monkeypatch.setattr(machine, "cores_count", lambda: 4)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1000 * MIB)
    monkeypatch.setattr(machine, "disk_available_bytes", lambda path: 10_000 * MIB)
    monkeypatch.setattr(machine, "host_name", lambda: "board-7")


# Where a value comes from.


def test_defaults_suit_the_machine(board: None) -> None:
    config = load_config(env={"XDG_DATA_HOME": "/data"})

    assert config.name == "board-7"
    assert config.listen == "tcp://127.0.0.1:7400"
    assert config.data_dir == "/data/activestore/board-7"
    assert (config.executors, config.executors_max) == (4, 8)
    assert config.executor_threads == 1
    assert config.executor_memory_mb == 200
    assert config.activation_memory_mb == 500
    assert config.disk_budget_mb == 8000


def test_many_cores_start_four_executors(
    board: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores_count", lambda: 64)

    config = load_config()

    assert (config.executors, config.executors_max) == (4, 128)
    assert config.executor_threads == 16


def test_tiny_machine_gets_the_lower_bounds(
    board: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores_count", lambda: 1)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 10 * MIB)
    monkeypatch.setattr(machine, "disk_available_bytes", lambda path: 0)

    config = load_config()

    assert (config.executors, config.executors_max) == (1, 4)
    assert config.executor_memory_mb == 32
    assert config.activation_memory_mb == 8
    assert config.disk_budget_mb == 16


def test_huge_disk_is_budgeted_at_one_tebibyte(
    board: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "disk_available_bytes", lambda path: 10**15)

    assert load_config().disk_budget_mb == 1024 * 1024


def test_executors_from_the_file_share_memory_and_threads(
    board: None, peer_toml: Path
) -> None:
    peer_toml.write_text("executors = 2\n")

    config = load_config(peer_toml)

    assert config.executor_memory_mb == 400
    assert config.executor_threads == 2


def test_more_executors_than_the_automatic_maximum_raise_it(board: None) -> None:
    assert load_config(flags={"executors": 20}).executors_max == 20


def test_flag_beats_environment_beats_file_beats_default(peer_toml: Path) -> None:
    peer_toml.write_text("slots = 5\nspin_us = 5\nmailbox_max = 5\n")
    env = {"ACTIVESTORE_SPIN_US": "6", "ACTIVESTORE_MAILBOX_MAX": "6"}

    config = load_config(peer_toml, env, {"mailbox_max": "7"})

    assert config.beat_s == 2.0
    assert config.slots == 5
    assert config.spin_us == 6
    assert config.mailbox_max == 7


def test_flag_that_was_not_given_changes_nothing() -> None:
    assert load_config(flags={"slots": None}).slots == 4


def test_environment_names_the_file(peer_toml: Path) -> None:
    peer_toml.write_text("slots = 9\n")

    assert load_config(env={"ACTIVESTORE_CONFIG": str(peer_toml)}).slots == 9


def test_flag_for_the_file_beats_the_environment(
    peer_toml: Path, tmp_path: Path
) -> None:
    peer_toml.write_text("slots = 9\n")

    config = load_config(peer_toml, {"ACTIVESTORE_CONFIG": str(tmp_path / "absent")})

    assert config.slots == 9


def test_texts_of_the_environment_become_values() -> None:
    env = {
        "ACTIVESTORE_NAME": "edge.1",
        "ACTIVESTORE_BEAT_S": "0.5",
        "ACTIVESTORE_CHECK_READONLY": "Yes",
        "ACTIVESTORE_PRELOAD": "numpy, torch.nn,",
        "ACTIVESTORE_JOIN": "tcp://10.0.0.1:7400,tcp://[fe80::1]:7400",
        "ACTIVESTORE_LOG_LEVEL": "DEBUG",
    }

    config = load_config(env=env)

    assert config.name == "edge.1"
    assert config.beat_s == 0.5
    assert config.check_readonly is True
    assert config.preload == ("numpy", "torch.nn")
    assert config.join == ("tcp://10.0.0.1:7400", "tcp://[fe80::1]:7400")
    assert config.log_level == "debug"


def test_toml_integer_is_a_number_of_seconds(peer_toml: Path) -> None:
    peer_toml.write_text("beat_s = 3\n")

    beat_s = load_config(peer_toml).beat_s

    assert (beat_s, type(beat_s)) == (3.0, float)


def test_every_setting_can_be_written_in_a_file_and_read_back(
    board: None, peer_toml: Path
) -> None:
    config = load_config()
    lines = []
    for name in SETTINGS:
        value = getattr(config, name)
        if KINDS[name] == "tuple[str, ...]":
            shown = str(list(value))
        elif isinstance(value, bool):
            shown = str(value).lower()
        else:
            shown = repr(value)
        if value != "":
            lines.append(f"{name} = {shown}")
    peer_toml.write_text("\n".join(lines))

    assert load_config(peer_toml) == config


def test_foreign_variables_with_the_prefix_pass() -> None:
    env = {
        "ACTIVESTORE_ENDPOINT": "tcp://127.0.0.1:7400",
        "ACTIVESTORE_FUZZ_CASES": "9",
        "ACTIVESTORE_KILLS": "9",
        "ACTIVESTORE_CI_RUN": "1",
        "SLOTS": "99",
    }

    assert load_config(env=env).slots == 4


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/activestore/n"),
        ({"XDG_DATA_HOME": "", "HOME": "/h"}, "/h/.local/share/activestore/n"),
        ({"XDG_DATA_HOME": "rel", "HOME": "/h"}, "/h/.local/share/activestore/n"),
    ],
)
def test_data_directory_follows_xdg(env: dict[str, str], expected: str) -> None:
    assert load_config(env=env, flags={"name": "n"}).data_dir == expected


def test_data_directory_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")

    assert load_config(flags={"data_dir": "store"}).data_dir == str(tmp_path / "store")
    assert load_config(flags={"data_dir": "~/store"}).data_dir == "/home/ada/store"


# What is refused.


def test_unknown_key_names_file_key_and_nearest_setting(peer_toml: Path) -> None:
    peer_toml.write_text("executers = 2\n")

    with pytest.raises(ConfigurationError) as caught:
        load_config(peer_toml)

    assert caught.value.setting == "executers"
    assert str(peer_toml) in caught.value.reason
    assert "nearest one is executors" in caught.value.reason


def test_table_in_the_file_is_an_unknown_key(peer_toml: Path) -> None:
    peer_toml.write_text("[peer]\nexecutors = 2\n")

    with pytest.raises(ConfigurationError) as caught:
        load_config(peer_toml)

    assert caught.value.setting == "peer"


def test_unknown_flag_names_the_nearest_setting() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={"data-dri": "x"})

    assert "nearest one is data_dir" in caught.value.reason


def test_mistyped_variable_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(env={"ACTIVESTORE_EXECUTERS": "2"})

    assert caught.value.setting == "ACTIVESTORE_EXECUTERS"
    assert "ACTIVESTORE_EXECUTORS" in caught.value.reason


@pytest.mark.parametrize(
    ("line", "setting", "expected"),
    [
        ("executors = '2'", "executors", "expected a whole number"),
        ("executors = 2.0", "executors", "expected a whole number"),
        ("executors = true", "executors", "expected a whole number"),
        ("beat_s = true", "beat_s", "expected a number"),
        ("insecure = 1", "insecure", "expected true or false"),
        ("join = 'tcp://a:1'", "join", "expected a list of texts"),
        ("join = [1]", "join", "expected a list of texts"),
        ("name = 7", "name", "expected a text"),
        ("listen = ['tcp://a:1']", "listen", "expected a text"),
    ],
)
def test_wrong_type_in_the_file(
    peer_toml: Path, line: str, setting: str, expected: str
) -> None:
    peer_toml.write_text(line)

    with pytest.raises(ConfigurationError) as caught:
        load_config(peer_toml)

    assert caught.value.setting == setting
    assert expected in caught.value.reason
    if setting != "name":
        assert str(peer_toml) in caught.value.reason


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("ACTIVESTORE_SLOTS", "four"),
        ("ACTIVESTORE_SLOTS", "4.5"),
        ("ACTIVESTORE_SLOTS", ""),
        ("ACTIVESTORE_BEAT_S", "soon"),
        ("ACTIVESTORE_CHECK_READONLY", "maybe"),
    ],
)
def test_wrong_type_in_the_environment(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(env={variable: text})

    assert repr(text) in caught.value.reason
    assert variable in caught.value.reason


def _numbers_out_of_range() -> list[tuple[str, float]]:
    cases: list[tuple[str, float]] = []
    for name, about in SETTINGS.items():
        if about.low is None or about.high is None:
            continue
        step = 1 if KINDS[name] == "int" else 0.001
        below = about.low - step
        # 0 of an automatic setting means: choose one.
        cases.append((name, -1 if about.automatic and below == 0 else below))
        cases.append((name, about.high + step))
    return cases


@pytest.mark.parametrize(("name", "value"), _numbers_out_of_range())
def test_number_out_of_range(name: str, value: float) -> None:
    value = int(value) if KINDS[name] == "int" else value

    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={name: value})

    assert caught.value.setting == name
    assert "expected" in caught.value.reason


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_number_that_is_none(text: str) -> None:
    with pytest.raises(ConfigurationError):
        load_config(flags={"beat_s": text})


@pytest.mark.parametrize("name", ["log_level", "power_source", "profile"])
def test_choice_outside_its_list_names_the_list(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={name: "loud"})

    assert "expected one of " + ", ".join(SETTINGS[name].choices) in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "a/b", "..", ".hidden", "a~b", "ä", "x" * 65])
def test_peer_name_that_is_no_part_of_a_path(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={"name": name})

    assert caught.value.setting == "name"


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:7400",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:123456",
        "tcp://::1:7400",
        "tcp://eth0;10.0.0.1:7400",
        "udp://127.0.0.1:7400",
        "inproc://here",
        "ipc://",
        "ipc://" + "x" * 101,
        "",
    ],
)
@pytest.mark.parametrize("name", ["listen", "join"])
def test_text_that_is_no_address(name: str, endpoint: str) -> None:
    value = endpoint if name == "listen" else (endpoint,)

    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={name: value})

    assert caught.value.setting == name


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "*"])
def test_address_that_nobody_can_connect_to_is_not_advertised(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={"advertise": f"tcp://{host}:7400"})

    assert "nobody can connect" in caught.value.reason


def test_port_zero_is_for_listening_only() -> None:
    assert load_config(flags={"listen": "tcp://127.0.0.1:0"}).listen.endswith(":0")
    with pytest.raises(ConfigurationError):
        load_config(flags={"join": ("tcp://127.0.0.1:0",)})


def test_module_name_with_code_in_it_is_not_preloaded() -> None:
    with pytest.raises(ConfigurationError):
        load_config(flags={"preload": ("os;print",)})


def test_fewer_executors_allowed_than_started() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={"executors": 4, "executors_max": 2})

    assert caught.value.setting == "executors_max"


def test_replies_are_kept_as_long_as_a_retry_may_come() -> None:
    """A reply forgotten before its session expires would let a retry run twice."""
    with pytest.raises(ConfigurationError) as caught:
        load_config(flags={"reply_keep_s": 100.0, "session_expiry_s": 200.0})

    assert caught.value.setting == "reply_keep_s"


@pytest.mark.parametrize("broken", [b"slots = ", b"slots = 4\nslots = 5", b"\xff\xfe"])
def test_file_that_is_no_toml(peer_toml: Path, broken: bytes) -> None:
    peer_toml.write_bytes(broken)

    with pytest.raises(ConfigurationError) as caught:
        load_config(peer_toml)

    assert caught.value.setting == str(peer_toml)


def test_file_that_is_absent_a_folder_or_enormous(tmp_path: Path) -> None:
    enormous = tmp_path / "enormous.toml"
    enormous.write_bytes(b"#" * (CONFIG_FILE_BYTES_MAX + 1))

    for path in (tmp_path / "absent.toml", tmp_path, enormous):
        with pytest.raises(ConfigurationError) as caught:
            load_config(path)
        assert caught.value.setting == str(path)


def test_configuration_error_is_a_mistake_of_the_caller() -> None:
    assert issubclass(ConfigurationError, InvalidRequestError)


def test_constructed_config_is_checked_too() -> None:
    wrong: dict[str, Any] = {"slots": "4"}

    with pytest.raises(ConfigurationError):
        PeerConfig(**wrong)
    with pytest.raises(ConfigurationError):
        PeerConfig(slots=0)


def test_config_is_frozen() -> None:
    config = PeerConfig()

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.slots = 5  # type: ignore[misc]


def test_every_setting_has_a_reason() -> None:
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(PeerConfig)]
    for name, about in SETTINGS.items():
        assert about.reason.endswith("."), name
        if KINDS[name] in ("int", "float"):
            assert about.unit, name
            assert about.low is not None, name


# Who can reach the peer.

EXPOSED = [
    "tcp://0.0.0.0:7400",
    "tcp://*:7400",
    "tcp://[::]:7400",
    "tcp://[::0]:7400",
    "tcp://0:7400",
    "tcp://192.168.1.4:7400",
    "tcp://8.8.8.8:7400",
    "tcp://[2001:db8::1]:7400",
    "tcp://[::ffff:10.0.0.1]:7400",
    "tcp://no-such-interface0:7400",
]


@pytest.mark.parametrize("listen", EXPOSED)
def test_listening_beyond_loopback_without_keys_is_refused(listen: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_listen(PeerConfig(listen=listen))

    assert caught.value.setting == "listen"
    assert listen in caught.value.reason
    assert "insecure = true" in caught.value.reason


@pytest.mark.parametrize("listen", EXPOSED)
def test_listening_anywhere_is_allowed_where_the_file_says_insecure(
    peer_toml: Path, listen: str
) -> None:
    peer_toml.write_text(f"listen = '{listen}'\ninsecure = true\n")

    check_listen(load_config(peer_toml))


@pytest.mark.parametrize(
    "listen",
    [
        "tcp://127.0.0.1:7400",
        "tcp://127.8.8.8:0",
        "tcp://[::1]:7400",
        "tcp://localhost:7400",
        "ipc://run/peer.sock",
    ],
)
def test_listening_at_loopback_needs_nothing(listen: str) -> None:
    check_listen(PeerConfig(listen=listen))


@pytest.mark.parametrize("value", ["true", "false"])
def test_insecure_does_not_count_as_variable_or_flag(value: str) -> None:
    """A flag in some start script is soon forgotten; a file is looked at."""
    with pytest.raises(ConfigurationError) as from_env:
        load_config(env={"ACTIVESTORE_INSECURE": value})
    with pytest.raises(ConfigurationError) as from_flag:
        load_config(flags={"insecure": value == "true"})

    assert from_env.value.setting == from_flag.value.setting == "insecure"


def test_host_name_that_resolves_beyond_loopback_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(host: str, *args: object, **more: object) -> list[Any]:
        return [(0, 0, 0, "", ("127.0.0.1", 0)), (0, 0, 0, "", ("10.0.0.5", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    with pytest.raises(ConfigurationError) as caught:
        check_listen(PeerConfig(listen="tcp://edge.example:7400"))

    assert "10.0.0.5" in caught.value.reason


# What the machine has.


def test_machine_has_cores_memory_and_a_name() -> None:
    assert machine.cores_count() >= 1
    assert machine.memory_bytes() > 64 * MIB
    assert PeerConfig(name=machine.host_name()).name


@pytest.mark.parametrize(
    ("host", "name"),
    [("edge-1.lan", "edge-1"), ("my_böard", "my_b-ard"), ("---", "peer"), ("", "peer")],
)
def test_host_name_becomes_a_peer_name(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)

    assert machine.host_name() == name


def test_memory_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("67108864\n")
    unlimited = tmp_path / "other"
    unlimited.write_text("max\n")
    monkeypatch.setattr(machine, "_MEMORY_LIMIT_FILES", (unlimited, limit))

    assert machine.memory_bytes() == 64 * MIB


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("?", None)],
)
def test_core_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None
) -> None:
    monkeypatch.setattr(machine, "_CPU_LIMIT_FILE", tmp_path / "absent")
    unlimited = machine.cores_count()
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(machine, "_CPU_LIMIT_FILE", tmp_path / "cpu.max")

    assert machine.cores_count() == (unlimited if expected is None else expected)


def test_disk_of_a_store_that_exists_counts_as_available(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"x" * MIB)

    own = machine._tree_bytes(tmp_path)
    available = machine.disk_available_bytes(tmp_path / "not" / "yet")

    assert own >= MIB
    assert available > 0
