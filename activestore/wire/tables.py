"""pandas DataFrame and Series as values; a dict of columns where pandas is missing.

A column is a map of `dtype` and `values`, with `mask` for nullable types, `categories`
and `is_ordered` for categoricals, `zone` for times with a zone. Texts are `text`, all of
them in one run, and `ends`, so that a frame of millions of rows has few elements. An
index is a column with `name`.

Rules of this file: what a column cannot say is refused; it is never changed silently.

Source: schemas/protocol.md section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from activestore.errors import RemoteProtocolError, UnsupportedValueError
from activestore.wire import values
from activestore.wire.clocks import zone_from, zone_of
from activestore.wire.values import Decoder, Encoder

_NULLABLE = frozenset({
    "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32",
    "Float64", "boolean",
})  # fmt: skip


def encoder_of(kind: type) -> Callable[[Encoder, Any], Any] | None:
    """Return the encoder of a pandas type, None for others."""
    if kind.__module__.partition(".")[0] != "pandas":
        return None
    pandas: Any = values.library("pandas")
    if kind is pandas.DataFrame:
        return _encode_frame
    if kind is pandas.Series:
        return _encode_series
    if kind is pandas.Timestamp:
        return lambda encoder, value: encoder.extension(
            values.SERIES, ["timestamp", _column(pandas.Series([value]))]
        )
    return None


def _encode_frame(encoder: Encoder, frame: Any) -> Any:
    names = list(frame.columns)
    columns = [_column(frame.iloc[:, i]) for i in range(len(names))]
    return encoder.extension(
        values.FRAME, [names, frame.columns.name, columns, _index(frame.index)]
    )


def _encode_series(encoder: Encoder, series: Any) -> Any:
    return encoder.extension(
        values.SERIES, ["series", series.name, _column(series), _index(series.index)]
    )


def _index(index: Any) -> dict[str, Any]:
    pandas: Any = values.library("pandas")
    if isinstance(index, pandas.MultiIndex):
        raise UnsupportedValueError(
            "pandas.MultiIndex", "index", "use reset_index() first"
        )
    if isinstance(index, pandas.RangeIndex):
        return {"range": [index.start, index.stop, index.step], "name": index.name}
    return {**_column(index.to_series()), "name": index.name}


def _column(series: Any) -> dict[str, Any]:
    """Return one column as a map of values that can travel."""
    pandas: Any = values.library("pandas")
    dtype = series.dtype
    name = str(dtype)
    if isinstance(dtype, pandas.CategoricalDtype):
        return {
            "dtype": "category", "values": series.cat.codes.to_numpy(),
            "categories": _column(series.cat.categories.to_series()),
            "is_ordered": bool(dtype.ordered),
        }  # fmt: skip
    if isinstance(dtype, pandas.DatetimeTZDtype):
        plain = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        return {"dtype": "zoned", "values": plain, "zone": zone_of(dtype.tz)}
    if name in _NULLABLE:
        mask = series.isna().to_numpy()
        plain = series.fillna(False if name == "boolean" else 0).to_numpy(
            dtype=name.lower().replace("boolean", "bool")
        )
        return {"dtype": name, "values": plain, "mask": mask}
    if name == "object":
        cells = list(series)
        if all(type(cell) is str for cell in cells):
            return {"dtype": "object", **_texts(cells)}
        return {"dtype": "object", "values": cells}
    if isinstance(dtype, pandas.StringDtype):
        mask = series.isna().to_numpy()
        cells = ["" if gone else cell for cell, gone in zip(series, mask, strict=True)]
        return {"dtype": "string", **_texts(cells), "mask": mask, "storage": name}
    if dtype.__class__.__module__.partition(".")[0] == "numpy":
        return {"dtype": name, "values": series.to_numpy()}
    raise UnsupportedValueError(
        f"column of {name}", f"[{series.name!r}]", "convert it with astype() first"
    )


def _texts(cells: list[str]) -> dict[str, Any]:
    """Return texts as one run of bytes and where each ends: no elements, two blocks."""
    numpy: Any = values.library("numpy")
    encoded = [cell.encode() for cell in cells]
    ends = numpy.cumsum([len(one) for one in encoded], dtype="<i8")
    return {"text": values.lift(b"".join(encoded)), "ends": ends}


def _cells(column: Any) -> list[Any]:
    """Return the cells of a column of texts or mixed values as a list."""
    if "text" not in column:
        return list(column["values"])
    text, cells, start = column["text"], [], 0
    for end in column["ends"].tolist():
        cells.append(text[start:end].decode())
        start = end
    if "mask" in column:
        mask = column["mask"].tolist()
        return [None if gone else cell for cell, gone in zip(cells, mask, strict=True)]
    return cells


def _decode_frame(decoder: Decoder, payload: bytes) -> Any:
    names, columns_name, columns, index = decoder.unpack(payload)
    if (
        type(names) is not list
        or type(columns) is not list
        or len(names) != len(columns)
    ):
        raise RemoteProtocolError("a malformed frame")
    pandas: Any = values.library("pandas")
    if pandas is None:
        return {
            name: _plain(column) for name, column in zip(names, columns, strict=True)
        }
    made_index = _make_index(pandas, index)
    data = {i: _make_array(pandas, column) for i, column in enumerate(columns)}
    frame = pandas.DataFrame(data, index=made_index)
    frame.columns = pandas.Index(names, name=columns_name)
    return frame


def _decode_series(decoder: Decoder, payload: bytes) -> Any:
    kind, *rest = decoder.unpack(payload)
    pandas: Any = values.library("pandas")
    if kind == "timestamp":
        (column,) = rest
        if pandas is None:
            return _plain(column)[0]
        return pandas.Series(_make_array(pandas, column)).iloc[0]
    if kind != "series":
        raise RemoteProtocolError("a malformed series")
    name, column, index = rest
    if pandas is None:
        return _plain(column)
    return pandas.Series(
        _make_array(pandas, column), index=_make_index(pandas, index), name=name
    )


def _plain(column: Any) -> Any:
    """Return a column without pandas: an array or a list."""
    if column["dtype"] == "category":
        categories = _plain(column["categories"])
        if hasattr(categories, "tolist"):
            categories = categories.tolist()
        return [
            None if code < 0 else categories[code] for code in column["values"].tolist()
        ]
    if "text" in column:
        return _cells(column)
    if "mask" in column:
        pairs = zip(column["values"].tolist(), column["mask"].tolist(), strict=True)
        return [None if gone else value for value, gone in pairs]
    return column["values"]


def _make_index(pandas: Any, index: Any) -> Any:
    if "range" in index:
        return pandas.RangeIndex(*index["range"], name=index["name"])
    return pandas.Index(_make_array(pandas, index), name=index["name"])


def _make_array(pandas: Any, column: Any) -> Any:
    """Return the content of a column in its dtype."""
    kind, content = column["dtype"], column.get("values")
    if kind == "category":
        categories = pandas.Index(_make_array(pandas, column["categories"]))
        return pandas.Categorical.from_codes(
            content, categories=categories, ordered=column["is_ordered"]
        )
    if kind == "zoned":
        zone = zone_from(column["zone"])  # Refuses what is none.
        if type(column["zone"]) is str:
            zone = column["zone"]  # pandas has its own idea of which library has it.
        return pandas.DatetimeIndex(content).tz_localize("UTC").tz_convert(zone)
    if kind in _NULLABLE:
        made = pandas.array(content, dtype=kind)
        made[column["mask"]] = pandas.NA
        return made
    if kind == "string":
        return pandas.array(_cells(column), dtype=column["storage"])
    if kind == "object":
        return pandas.Series(_cells(column), dtype=object).to_numpy()
    return content.copy() if not content.flags.writeable else content


DECODERS: dict[int, Callable[[Decoder, bytes], Any]] = {
    values.FRAME: _decode_frame,
    values.SERIES: _decode_series,
}
