"""Dates, times, Decimal and UUID as values.

A zone travels as its offset in microseconds, or as its key where it has one.

Rules of this file: as `values`; imported when the first such value comes.

Source: schemas/protocol.md section 5.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import msgpack

from activestore.errors import RemoteProtocolError, UnsupportedValueError
from activestore.wire import values
from activestore.wire.values import Decoder, Encoder

_US = datetime.timedelta(microseconds=1)


def zone_of(zone: Any) -> Any:
    """Return a zone as it travels: nil, an offset in microseconds, or a name.

    Raises:
        UnsupportedValueError: it is of a library that not every machine has.
    """
    if zone is None:
        return None
    # zoneinfo has `key`, pytz, which older versions of pandas use, `zone`.
    key = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if isinstance(key, str):
        return key
    if isinstance(zone, datetime.timezone):
        return zone.utcoffset(None) // _US
    raise UnsupportedValueError(
        f"{type(zone).__module__}.{type(zone).__qualname__}", "tzinfo",
        "use datetime.timezone or zoneinfo.ZoneInfo",
    )  # fmt: skip


def zone_from(zone: Any) -> Any:
    """Return the zone of what `zone_of` made."""
    if zone is None:
        return None
    if type(zone) is str:
        import zoneinfo

        return zoneinfo.ZoneInfo(zone)
    return datetime.timezone(datetime.timedelta(microseconds=zone))


def _encode_datetime(encoder: Encoder, value: datetime.datetime) -> Any:
    return encoder.extension(values.DATETIME, [
        value.year, value.month, value.day, value.hour, value.minute, value.second,
        value.microsecond, value.fold, zone_of(value.tzinfo),
    ])  # fmt: skip


def _encode_time(encoder: Encoder, value: datetime.time) -> Any:
    return encoder.extension(values.TIME, [
        value.hour, value.minute, value.second, value.microsecond, value.fold,
        zone_of(value.tzinfo),
    ])  # fmt: skip


def _decode_datetime(decoder: Decoder, payload: bytes) -> datetime.datetime:
    row: Any = decoder.unpack(payload)
    *numbers, fold, zone = row
    make: Any = datetime.datetime
    made: datetime.datetime = make(*numbers, fold=fold, tzinfo=zone_from(zone))
    return made


def _decode_time(decoder: Decoder, payload: bytes) -> datetime.time:
    row: Any = decoder.unpack(payload)
    *numbers, fold, zone = row
    make: Any = datetime.time
    made: datetime.time = make(*numbers, fold=fold, tzinfo=zone_from(zone))
    return made


def _decode_timedelta(decoder: Decoder, payload: bytes) -> datetime.timedelta:
    days, seconds, microseconds = decoder.unpack(payload)
    return datetime.timedelta(days, seconds, microseconds)


def _decode_decimal(_: Decoder, payload: bytes) -> decimal.Decimal:
    try:
        return decimal.Decimal(payload.decode("ascii"))
    except decimal.InvalidOperation:
        raise RemoteProtocolError("a Decimal that is no number") from None


_ENCODERS: dict[type, Callable[[Encoder, Any], Any]] = {
    datetime.datetime: _encode_datetime,
    datetime.time: _encode_time,
    datetime.date: lambda encoder, value: encoder.extension(
        values.DATE, [value.year, value.month, value.day]
    ),
    datetime.timedelta: lambda encoder, value: encoder.extension(
        values.TIMEDELTA, [value.days, value.seconds, value.microseconds]
    ),
    decimal.Decimal: lambda _, value: msgpack.ExtType(
        values.DECIMAL, str(value).encode("ascii")
    ),
    uuid.UUID: lambda _, value: msgpack.ExtType(values.UUID, value.bytes),
}

DECODERS: dict[int, Callable[[Decoder, bytes], Any]] = {
    values.DATE: lambda decoder, payload: datetime.date(*decoder.unpack(payload)),
    values.TIME: _decode_time,
    values.DATETIME: _decode_datetime,
    values.TIMEDELTA: _decode_timedelta,
    values.DECIMAL: _decode_decimal,
    values.UUID: lambda _, payload: uuid.UUID(bytes=payload),
}


def encoder_of(kind: type) -> Callable[[Encoder, Any], Any] | None:
    """Return the encoder of an exact type, None for others."""
    return _ENCODERS.get(kind)
