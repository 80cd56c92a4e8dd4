"""The settings of a peer: defaults, units, ranges and reasons.

A `PeerConfig` that exists is valid: its constructor fills in what depends on the machine
and checks every range. `docs/reference/configuration.md` is made from the table below.

Rules of this file: a wrong setting is an error at start, never a guess. Where settings
come from is in `config_sources`.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from activestore.errors import ConfigurationError
from activestore.peer import machine
from activestore.peer.addresses import check_endpoint, check_word, exposure_of
from activestore.wire.copies import REPLICAS_MAX, REPLICAS_MIN, WITNESSED
from activestore.wire.limits import MESSAGE_BYTES_MAX

DEFAULT_LISTEN = "tcp://127.0.0.1:7400"

MIB = 1024 * 1024
GIB = 1024 * MIB
DAY_S = 86_400.0

# A record of a peer travels in gossip: it stays small.
ACCELERATORS_MAX = 16


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
    searches_per_s: float = _setting(
        20.0,
        "How often it may ask all peers for an object whose home cannot be asked and "
        "that nobody else has heard of; each object at most every 10 s. 0 for never: "
        "such a call then fails at once.",
        unit="1/s",
        within=(0.0, 1000.0),
    )
    replicas: int = _setting(
        1,
        "Peers that keep each object that is made here, where its maker names no number. "
        "With 3 no acknowledged change is lost with a disk, and one of them may be away; "
        "each change then waits for a second disk and a round trip.",
        unit="peers",
        within=(REPLICAS_MIN, REPLICAS_MAX),
    )
    witness: bool = _setting(
        False,
        "Whether a third peer has a vote where `replicas` is 2, and keeps no state: one "
        "of the two can then go on alone. Without it both must be there for a change.",
    )
    repair_after_s: float = _setting(
        600.0,
        "How long a peer that keeps copies may be away before they are made anew at "
        "others. Shorter than a restart or an update takes, and every one of those copies "
        "all that it keeps.",
        unit="s",
        within=(1.0, 604_800.0),
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
    scrub_interval_h: float = _setting(
        168.0,
        "How often everything on disk is read again and compared with its checksums, at "
        "8 MiB/s. What is damaged is shown in `status`, and an object with replicas is "
        "brought back from them. 0 for never.",
        unit="h",
        within=(0.0, 8784.0),
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
        "How long replies are kept for clients that ask again, in time for which the "
        "peer runs, whatever its clock says. At least session_expiry_s, else a late "
        "retry would find nothing and run twice.",
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
            check_type(name, getattr(self, name))
        self._fill_in()
        for name in SETTINGS:
            check_range(name, getattr(self, name))
        _check_names(self)
        if self.executors_max < self.executors:
            raise ConfigurationError(
                "executors_max",
                f"is {self.executors_max}, expected at least executors = "
                f"{self.executors}",
            )
        if self.witness and self.replicas != WITNESSED:
            raise ConfigurationError(
                "witness",
                f"is true with replicas = {self.replicas}, expected replicas = "
                f"{WITNESSED}: one copy has nobody to vote with, and three or more "
                "decide by themselves",
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


def wrong_type(name: str, value: object, where: str) -> ConfigurationError:
    """Return the error that a value is of another type; `where` says who gave it."""
    at = f" {where}" if where else ""
    expected = _KIND_WORDS[KINDS[name]]
    return ConfigurationError(
        name, f"is {value!r}{at} ({type(value).__name__}), expected {expected}"
    )


def check_type(name: str, value: object, where: str = "") -> None:
    """Check that a value is of its setting's type.

    Raises:
        ConfigurationError: it is not; `where` says who gave it.
    """
    kind = KINDS[name]
    # Exact types: True is an int to isinstance, and no number of executors.
    if kind == "tuple[str, ...]":
        fits = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
    elif kind == "float":
        fits = type(value) in (int, float)
    else:
        fits = type(value).__name__ == kind
    if not fits:
        raise wrong_type(name, value, where)


def check_range(name: str, value: Any, where: str = "") -> None:
    """Check that a value is within its setting's range, or one of its choices.

    Raises:
        ConfigurationError: it is not; `where` says who gave it.
    """
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
