"""The settings of a peer: defaults, units, ranges, reasons, and where they come from.

Flags over `ACTIVESTORE_*` variables over `peer.toml` over defaults. A `PeerConfig` that
exists is valid: its constructor fills in what depends on the machine and checks every
range. `docs/reference/configuration.md` is made from the table below.

Rules of this file: a wrong setting is an error at start, never a guess; `insecure` is
believed from a file only, where it stays visible.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from activestore.errors import ConfigurationError
from activestore.peer import machine
from activestore.peer.addresses import check_endpoint, check_word, exposure_of
from activestore.wire.limits import MESSAGE_BYTES_MAX

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "ACTIVESTORE_"
DEFAULT_LISTEN = "tcp://127.0.0.1:7400"

# 1 MiB of TOML: settings are a page; a larger file is the wrong file.
CONFIG_FILE_BYTES_MAX = 1024 * 1024

MIB = 1024 * 1024
GIB = 1024 * MIB
DAY_S = 86_400.0

# A record of a peer travels in gossip: it stays small.
ACCELERATORS_MAX = 16

# An unknown variable that is this similar to a setting is taken for a typing error.
# Less similar ones pass: clients and tests share the prefix.
_TYPING_ERROR_SIMILARITY = 0.85


class Setting(NamedTuple):
    """What is known of one setting beside its default: for checks and the reference.

    `automatic` says in words what an empty value (0 or "") becomes on this machine; it
    is None where an empty value is just a value.
    """

    reason: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    automatic: str | None = None
    choices: tuple[str, ...] = ()
    is_file_only: bool = False


def _setting(  # noqa: PLR0913 - one argument for each column of the reference
    default: Any,
    reason: str,
    *,
    unit: str = "",
    within: tuple[float, float] | None = None,
    automatic: str | None = None,
    choices: tuple[str, ...] = (),
    is_file_only: bool = False,
) -> Any:
    low, high = within or (None, None)
    about = Setting(reason, unit, low, high, automatic, choices, is_file_only)
    return dataclasses.field(default=default, metadata={"setting": about})


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Every setting of one peer, resolved and valid.

    Raises:
        ConfigurationError: a value has the wrong type or is outside its range.
    """

    name: str = _setting(
        "",
        "What people call the peer. Letters, digits, `-`, `_` and `.`, at most 64: it "
        "is part of a path and of alias names.",
        automatic="the host's name",
    )
    listen: str = _setting(
        DEFAULT_LISTEN,
        "The address it serves at: `tcp://HOST:PORT` (port 0 picks a free one) or "
        "`ipc://PATH`. Loopback by default, because there are no keys by default.",
    )
    advertise: str = _setting(
        "",
        "The address others are told, where it differs: behind a NAT, or when it "
        "listens at every interface.",
        automatic="the address it listens at",
    )
    join: tuple[str, ...] = _setting(
        (),
        "Addresses of peers to join at start; any one of them is enough.",
    )
    cluster: str = _setting(
        "activestore",
        "The name of its cluster: peers of another one are refused, so that two on the "
        "same network stay two. Written like a name.",
    )
    zone: str = _setting(
        "",
        "Where it stands, in a word: `plant-2`, `eu-west`. Within a zone peers are "
        "watched closely, between zones patiently. Written like a name, or empty.",
    )
    profile: str = _setting(
        "lan",
        "How patiently it watches others: `lan` finds a death in seconds, `wan` "
        "forgives slow lines, `edge` also wakes the radio less often. Peers of "
        "different zones use `wan` where both say `lan`.",
        choices=("lan", "wan", "edge"),
    )
    discover: bool = _setting(
        False,
        "Find peers of the same cluster on the local network by mDNS, and be found. "
        "Needs `activestore[discover]`. Off by default: what joins without being "
        "named should be asked for.",
    )
    stable: bool = _setting(
        True,
        "Whether it is a good keeper of what others look up: it stays on and keeps its "
        "address. Boards on a battery and laptops are not.",
    )
    accelerators: tuple[str, ...] = _setting(
        (),
        "Accelerators that classes may ask for, such as `cuda` or `tpu`, where the "
        "system does not show them. Each is written like a name, at most 16.",
        automatic="those that are found",
    )
    data_dir: str = _setting(
        "",
        "Where its objects live. One directory belongs to one peer for ever.",
        automatic="`$XDG_DATA_HOME/activestore/NAME`, else "
        "`~/.local/share/activestore/NAME`",
    )
    executors: int = _setting(
        0,
        "Processes that run methods, started with the peer. More than cores only costs "
        "memory.",
        unit="processes",
        within=(1, 256),
        automatic="the number of cores, at most 4",
    )
    executors_max: int = _setting(
        0,
        "Executors there may be at once, those included that are started for classes "
        "whose code differs and those that replace a dead one.",
        unit="processes",
        within=(1, 512),
        automatic="twice the number of cores, at least 4",
    )
    slots: int = _setting(
        4,
        "Threads per executor: calls that release the GIL or wait for other objects "
        "overlap.",
        unit="threads",
        within=(1, 64),
    )
    spin_us: int = _setting(
        200,
        "How long daemon and executors look again before they block, while calls come "
        "close together. 200 takes a round trip from 230 to 70 us; 0 saves power.",
        unit="us",
        within=(0, 10_000),
    )
    mailbox_max: int = _setting(
        128,
        "Calls that may wait at one object; the next one gets `BusyError`. A longer "
        "queue only hides that the object is too slow for its callers.",
        unit="calls",
        within=(1, 65_536),
    )
    disk_budget_mb: int = _setting(
        0,
        "What the store may use of the disk. At 80 % new objects are refused, at 95 % "
        "growth; reads and deletes always work.",
        unit="MiB",
        within=(16, 1024 * 1024),
        automatic="80 % of the disk that is free or its own at start, at most 1 TiB",
    )
    executor_memory_mb: int = _setting(
        0,
        "Hard limit of one executor: a method that needs more gets `MemoryError` or "
        "loses its executor, and the machine goes on.",
        unit="MiB",
        within=(32, 1024 * 1024),
        automatic="80 % of memory / executors",
    )
    activation_memory_mb: int = _setting(
        0,
        "What activated objects may take over all executors; the least recently used "
        "is passivated beyond it.",
        unit="MiB",
        within=(8, 16 * 1024 * 1024),
        automatic="50 % of memory",
    )
    message_bytes_max: int = _setting(
        MESSAGE_BYTES_MAX,
        "The largest message: a call with its arguments, or a result.",
        unit="bytes",
        within=(MIB, 64 * GIB),
    )
    insecure: bool = _setting(
        False,
        "Allow to listen beyond loopback without keys: whoever reaches the port can "
        "then run code here. Counts only in the file, not as a flag or variable.",
        is_file_only=True,
    )
    check_readonly: bool = _setting(
        False,
        "Compare all fields after a readonly method too, to find in-place changes. "
        "Costs a digest of the object's state for every call.",
    )
    preload: tuple[str, ...] = _setting(
        (),
        "Modules that executors import at start: the first call does not wait for "
        "them, every executor pays their memory.",
    )
    reply_keep_s: float = _setting(
        3600.0,
        "How long replies are kept for clients that ask again. At least "
        "session_expiry_s, else a late retry would find nothing and run twice.",
        unit="s",
        within=(60.0, 30 * DAY_S),
    )
    beat_s: float = _setting(
        2.0,
        "How often a caller hears that its call is queued or running. Clients give up "
        "after 30 s of silence by default, so 15 beats may get lost.",
        unit="s",
        within=(0.05, 10.0),
    )
    session_expiry_s: float = _setting(
        3600.0,
        "A request first sent longer ago than this is refused, not run: nobody can "
        "tell any more whether it ran.",
        unit="s",
        within=(10.0, 30 * DAY_S),
    )
    cancel_grace_s: float = _setting(
        2.0,
        "Time a cancelled or overdue method has to end before its executor is killed.",
        unit="s",
        within=(0.0, 300.0),
    )
    quarantine_s: float = _setting(
        600.0,
        "How long a call is refused that has killed two executors.",
        unit="s",
        within=(0.0, DAY_S),
    )
    reader_wait_s: float = _setting(
        0.05,
        "How long a readonly call waits for a running exclusive one before it reads "
        "the last committed state in a second copy.",
        unit="s",
        within=(0.0, 60.0),
    )
    executor_threads: int = _setting(
        0,
        "Threads of the numeric libraries in one executor; with the default all "
        "executors together use every core once.",
        unit="threads",
        within=(1, 1024),
        automatic="cores / executors, at least 1",
    )
    log_level: str = _setting(
        "info",
        "`info` tells changes an operator asked for; `debug` every message.",
        choices=("debug", "info", "warning", "error"),
    )
    power_source: str = _setting(
        "unknown",
        "What feeds the machine; shown in `status`, for people and for placement.",
        choices=("unknown", "mains", "battery", "solar"),
    )

    def __post_init__(self) -> None:
        for name in SETTINGS:
            _check_type(name, getattr(self, name))
        self._fill_in()
        for name in SETTINGS:
            _check_range(name, getattr(self, name))
        _check_names(self)
        if self.executors_max < self.executors:
            raise ConfigurationError(
                "executors_max",
                f"is {self.executors_max}, expected at least executors = "
                f"{self.executors}",
            )
        if self.reply_keep_s < self.session_expiry_s:
            raise ConfigurationError(
                "reply_keep_s",
                f"is {self.reply_keep_s:g}, expected at least session_expiry_s = "
                f"{self.session_expiry_s:g}: a retry must find its reply",
            )

    def _fill_in(self) -> None:
        """Replace empty values by what suits this machine."""
        cores = machine.cores_count()
        self._default("name", machine.host_name())
        # Before it becomes part of a path.
        check_word(self.name, "name")
        home = machine.data_home(os.environ)
        self._default("data_dir", str(home / "activestore" / self.name))
        path = os.path.abspath(os.path.expanduser(self.data_dir))
        object.__setattr__(self, "data_dir", path)
        self._default("executors", min(4, cores))
        self._default("executors_max", max(4, 2 * cores, self.executors))
        self._default("executor_threads", max(1, cores // max(1, self.executors)))
        memory_mb = machine.memory_bytes() // MIB
        share_mb = memory_mb * 8 // 10 // max(1, self.executors)
        self._default("executor_memory_mb", _bounded("executor_memory_mb", share_mb))
        half_mb = memory_mb // 2
        self._default("activation_memory_mb", _bounded("activation_memory_mb", half_mb))
        self._default("accelerators", machine.accelerators())
        if not self.disk_budget_mb:
            disk_mb = machine.disk_available_bytes(Path(path)) // MIB * 8 // 10
            self._default("disk_budget_mb", _bounded("disk_budget_mb", disk_mb))

    def _default(self, name: str, value: object) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)


SETTINGS: dict[str, Setting] = {
    field.name: field.metadata["setting"] for field in dataclasses.fields(PeerConfig)
}

# Annotations are texts here, which makes them keys.
KINDS: dict[str, str] = {
    field.name: str(field.type) for field in dataclasses.fields(PeerConfig)
}

_KIND_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple[str, ...]": "a list of texts",
}


def load_config(
    path: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> PeerConfig:
    """Return the settings: flags over environment over file over defaults.

    Args:
        path: A `peer.toml`; None for `$ACTIVESTORE_CONFIG`, else no file.
        env: The environment; None for none. Not read: variables without the prefix,
            except `XDG_DATA_HOME` and `HOME` for the default of data_dir.
        flags: Setting to value, as texts or of the setting's type; None as a value
            means that the flag was not given.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown, a value has the
            wrong type or is outside its range.
    """
    env = {} if env is None else env
    chosen = path if path is not None else env.get(f"{ENV_PREFIX}CONFIG") or None
    values: dict[str, Any] = {} if chosen is None else settings_of_file(Path(chosen))
    values.update(_from_env(env))
    values.update(_from_flags({} if flags is None else flags))
    name = values.get("name") or machine.host_name()
    _check_type("name", name)
    check_word(name, "name")
    if not values.get("data_dir"):
        values["data_dir"] = str(machine.data_home(env) / "activestore" / name)
    return PeerConfig(**values)


def check_listen(config: PeerConfig) -> None:
    """Refuse to listen where strangers reach the peer and nothing asks who they are.

    Raises:
        ConfigurationError: the address is not loopback and the file does not say
            `insecure = true`.
    """
    why = exposure_of(config.listen)
    if why and not config.insecure:
        raise ConfigurationError(
            "listen",
            f"{config.listen}: {why}, and this peer has no keys: whoever reaches the "
            f"port could run code here. Listen at loopback ({DEFAULT_LISTEN}), or "
            "write `insecure = true` into the configuration file where the network "
            "is trusted",
        )


def settings_of_file(path: Path) -> dict[str, Any]:
    """Return what a `peer.toml` says, each value of its setting's type and range.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown, a value has the
            wrong type or is outside its range.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise ConfigurationError(str(path), reason) from None
    if len(data) > CONFIG_FILE_BYTES_MAX:
        reason = f"is over {CONFIG_FILE_BYTES_MAX:,} bytes, no configuration"
        raise ConfigurationError(str(path), reason)
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at byte {error.start}"
        raise ConfigurationError(str(path), reason) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(str(path), f"is not TOML: {error}") from None
    return settings_of_table(table, f"in {path}")


def settings_of_table(table: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return the settings of a parsed file; `where` says in errors what was read.

    Raises:
        ConfigurationError: as `settings_of_file`.
    """
    values = {}
    for key, value in table.items():
        if key not in SETTINGS:
            raise ConfigurationError(key, _unknown(key, where))
        values[key] = _from_toml(key, value, where)
    return values


def _from_toml(name: str, value: object, where: str) -> Any:
    kind = KINDS[name]
    if kind == "float" and type(value) is int:
        value = float(value)
    elif kind == "tuple[str, ...]" and isinstance(value, list):
        value = tuple(value)
    elif SETTINGS[name].choices and isinstance(value, str):
        value = value.lower()
    _check_type(name, value, where)
    _check_range(name, value, where)
    return value


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable in sorted(env):
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if name in SETTINGS:
            values[name] = _from_outside(name, env[variable], variable)
            continue
        near = difflib.get_close_matches(name, SETTINGS, 1, _TYPING_ERROR_SIMILARITY)
        if near:
            wanted = f"{ENV_PREFIX}{near[0].upper()}"
            raise ConfigurationError(
                variable, f"is no setting; did you mean {wanted}? Unset it otherwise"
            )
    return values


def _from_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    values = {}
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if name not in SETTINGS:
            raise ConfigurationError(flag, _unknown(name, "as a flag"))
        if value is not None:
            values[name] = _from_outside(name, value, flag)
    return values


def _from_outside(name: str, value: object, where: str) -> Any:
    """Return a value given as a flag or variable, where everything may be text."""
    if SETTINGS[name].is_file_only:
        raise ConfigurationError(
            name, f"counts only in the configuration file; seen as {where}"
        )
    if isinstance(value, str):
        value = _parse(name, value, where)
    elif isinstance(value, list):
        value = tuple(value)
    return _from_toml(name, value, f"from {where}")


def _parse(name: str, text: str, where: str) -> object:
    kind = KINDS[name]
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        raise _wrong_type(name, text, f"from {where}") from None
    if kind == "bool":
        truth = {"true": True, "1": True, "yes": True, "on": True}
        truth |= {"false": False, "0": False, "no": False, "off": False}
        if text.lower() not in truth:
            raise _wrong_type(name, text, f"from {where}")
        return truth[text.lower()]
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _unknown(name: str, where: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SETTINGS, 1, 0.0)
    return f"unknown setting {where}; the nearest one is {near[0]}"


def _wrong_type(name: str, value: object, where: str) -> ConfigurationError:
    at = f" {where}" if where else ""
    expected = _KIND_WORDS[KINDS[name]]
    return ConfigurationError(
        name, f"is {value!r}{at} ({type(value).__name__}), expected {expected}"
    )


def _check_type(name: str, value: object, where: str = "") -> None:
    kind = KINDS[name]
    # Exact types: True is an int to isinstance, and no number of executors.
    if kind == "tuple[str, ...]":
        fits = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    elif kind == "float":
        fits = type(value) in (int, float)
    else:
        fits = type(value).__name__ == kind
    if not fits:
        raise _wrong_type(name, value, where)


def _check_range(name: str, value: Any, where: str = "") -> None:
    about = SETTINGS[name]
    at = f" {where}" if where else ""
    if about.choices and value not in about.choices:
        expected = ", ".join(about.choices)
        raise ConfigurationError(name, f"is {value!r}{at}, expected one of {expected}")
    if about.low is None or about.high is None:
        return
    # A default of 0 stands for "choose one"; a 0 that somebody wrote is out of range.
    if about.automatic is not None and value == 0 and not where:
        return
    # Written so that NaN, which compares false with everything, is refused.
    if not about.low <= value <= about.high:
        unit = f" {about.unit}" if about.unit else ""
        raise ConfigurationError(
            name,
            f"is {value:,}{at}, expected {about.low:,.16g} to {about.high:,.16g}{unit}",
        )


def _bounded(name: str, value: int) -> int:
    about = SETTINGS[name]
    return int(max(about.low or 0, min(about.high or value, value)))


def _check_names(config: PeerConfig) -> None:
    """Check the settings that are addresses and modules."""
    check_endpoint(config.listen, "listen", port_min=0)
    if config.advertise:
        check_endpoint(config.advertise, "advertise", port_min=1)
    for endpoint in config.join:
        check_endpoint(endpoint, "join", port_min=1)
    check_word(config.cluster, "cluster")
    if config.zone:
        check_word(config.zone, "zone")
    if len(config.accelerators) > ACCELERATORS_MAX:
        raise ConfigurationError(
            "accelerators",
            f"has {len(config.accelerators)}, expected at most {ACCELERATORS_MAX}",
        )
    for accelerator in config.accelerators:
        check_word(accelerator, "accelerators")
    for module in config.preload:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigurationError(
                "preload", f"{module!r} is not the name of a module, such as 'torch'"
            )
