"""Records: what rows of a table, objects of a JSON file and rows of a data set on the hub have in common.

    JSON        an array, JSON lines, or one object that holds the array
    CSV         .csv and .tsv, or any file whose first line names the needed columns
    Parquet     a plain file, or a member of a zip (not of a tar: it is read from its end)

All are read one record at a time. The memory needed does not depend on the size of the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from svitlo.data.head import Head, columns_of, separator_of
from svitlo.data.jsonrecords import LONGEST_RECORD, NotJson, json_records
from svitlo.errors import DataError
from svitlo.units import shown

PARQUET_ROWS = 1_000
"""Rows of Parquet in memory at a time."""


class Place(NamedTuple):
    """The place of a record. As text, it begins a message."""

    name: str
    """Name of the file, the member or the data set."""
    unit: str
    """`line`, `record` or `row`."""
    number: int
    """From 1."""

    def __str__(self) -> str:
        return f"{self.name}: {self.unit} {self.number:,}"


def file_records(
    head: Head, stream: io.BufferedReader, needed: frozenset[str], under: str | None = None
) -> Iterator[tuple[Place, Any]]:
    """The records of a file with their places. `needed`: the required fields, by which CSV is recognised.

    `under`: see `json_records`. Raises `DataError`, and whatever reading the stream raises.
    """
    name = head.name
    if head.kind == "parquet":
        yield from _parquet_rows(name, stream)
    elif head.kind == "json" or head.start[:1] in ("{", "["):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
        try:
            for unit, number, record in json_records(text, head.start, under):
                yield Place(name, unit, number), record
        except NotJson as error:
            raise DataError(f"{name}: not valid JSON: {error}") from None
        finally:
            _release(text)
    elif head.kind == "csv" or needed <= set(columns_of(head.start)):
        yield from _csv_rows(name, head, stream)
    elif head.start:
        fields = ", ".join(sorted(needed))
        raise DataError(f"{name}: neither JSON nor CSV with the columns {fields}. It begins with {head.start[:60]!r}")


def _csv_rows(name: str, head: Head, stream: io.BufferedReader) -> Iterator[tuple[Place, Any]]:
    csv.field_size_limit(LONGEST_RECORD)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=separator_of(head.start), strict=True)
    try:
        columns: list[str] = []
        line = 1
        for row in rows:
            if not columns:
                columns = [column.strip() for column in row]
            elif row:
                if len(row) != len(columns):
                    raise DataError(
                        f"{name}: line {line:,}: has {len(row)} values and the first line names {len(columns)} "
                        f"columns ({', '.join(columns)}): {shown(row)}"
                    )
                yield Place(name, "line", line), dict(zip(columns, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}: line {rows.line_num:,}: not valid CSV ({error})") from None
    finally:
        _release(text)


def _parquet_rows(name: str, stream: io.BufferedReader) -> Iterator[tuple[Place, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{name}: is a Parquet file, and the package pyarrow is not installed here. Run the data-prep container, "
            f"which has it"
        ) from None
    if not stream.seekable():
        raise DataError(f"{name}: a Parquet file is read from its end, which a tar archive cannot do. Unpack it first")
    try:
        table = pyarrow.parquet.ParquetFile(stream)
        number = 0
        for batch in table.iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Place(name, "row", number), row
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: damaged or cut short ({reason}). Copy or download it again") from None


def _release(text: io.TextIOWrapper) -> None:
    """Detach from the stream without closing it: it belongs to the archive."""
    if not text.closed:
        text.detach()


# --- fields ----------------------------------------------------------------------------------------------------------


def mapped(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The record under our field names. `names`: our name → the record's, for those that differ."""
    if not names:
        return record
    taken = set(names.values())
    ours = {field: value for field, value in record.items() if field not in taken and field not in names}
    return ours | {field: record[theirs] for field, theirs in names.items() if theirs in record}


def text_in(place: Place, field: str, value: Any) -> str:
    """A value that should be text. Null, or NaN as tables write it, becomes empty text. Raises `DataError`."""
    if isinstance(value, str):
        return value
    if is_nothing(value):
        return ""
    raise DataError(f"{place}: the field `{field}` should be text and is {type(value).__name__} {shown(value)}")


def is_nothing(value: Any) -> bool:
    """Null, or a NaN."""
    return value is None or (isinstance(value, (float, Decimal)) and value != value)
