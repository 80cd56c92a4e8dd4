"""Where the settings of a peer come from: flags, variables, a file.

Flags over `ACTIVESTORE_*` variables over `peer.toml` over defaults.

Rules of this file: what is unknown or of the wrong type is an error that names where it
was read; `insecure` is believed from a file only, where it stays visible.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from activestore.errors import ConfigurationError
from activestore.peer import machine
from activestore.peer.addresses import check_word
from activestore.peer.config import (
    KINDS,
    SETTINGS,
    PeerConfig,
    check_range,
    check_type,
    wrong_type,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "ACTIVESTORE_"

# 1 MiB of TOML: settings are a page; a larger file is the wrong file.
CONFIG_FILE_BYTES_MAX = 1024 * 1024

# An unknown variable that is this similar to a setting is taken for a typing error.
# Less similar ones pass: clients and tests share the prefix.
_TYPING_ERROR_SIMILARITY = 0.85


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
    check_type("name", name)
    check_word(name, "name")
    if not values.get("data_dir"):
        values["data_dir"] = str(machine.data_home(env) / "activestore" / name)
    return PeerConfig(**values)


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
    check_type(name, value, where)
    check_range(name, value, where)
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
        raise wrong_type(name, text, f"from {where}") from None
    if kind == "bool":
        truth = {"true": True, "1": True, "yes": True, "on": True}
        truth |= {"false": False, "0": False, "no": False, "off": False}
        if text.lower() not in truth:
            raise wrong_type(name, text, f"from {where}")
        return truth[text.lower()]
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _unknown(name: str, where: str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SETTINGS, 1, 0.0)
    return f"unknown setting {where}; the nearest one is {near[0]}"
