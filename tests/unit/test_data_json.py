"""JSON as people's tools write it: many layouts, text that only resembles JSON, and the place of a mistake."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from typing import Any

import ijson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data import jsonrecords
from svitlo.data.jsonrecords import NotJson, json_records


@pytest.fixture(params=["yajl2_c", "python"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library inside the wheel, and the one that is always there."""
    monkeypatch.setattr(ijson, "items_coro", ijson.get_backend(request.param).items_coro)


def values(text: str, under: str | None = None) -> list[Any]:
    return [value for _, _, value in json_records(io.StringIO(text, newline="\n"), text[:65_536], under)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}, {"a": 3}]',
        '{"a": 1}\n{"a": 2}\n\n{"a": 3}\n',
        '{"a": 1}\r\n{"a": 2}\r\n{"a": 3}',
        '[{"a": 1}]\n[{"a": 2}, {"a": 3}]',
        '[{"a": 1}][{"a": 2}] [{"a": 3}]',
        '{"a": 1}{"a": 2} {"a": 3}',
        '{\n "a": 1\n}\n{\n "a": 2\n}\n{\n "a": 3\n}\n',
        '{"a": 1}\n[{"a": 2}, {"a": 3}]\n',
        '[{"a": 1}]\n{"a": 2}\n{"a": 3}',
    ],
)
def test_records_stand_in_many_ways(text: str) -> None:
    assert values(text) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("text", ['{"version": "1", "data": [{"a": 1}, {"a": 2}]}', '{"data":[{"a": 1}]}[{"a": 2}]'])
def test_records_under_a_key(text: str) -> None:
    assert values(text, under="data") == [{"a": 1}, {"a": 2}]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["[%s]", "[\n  %s\n]\n", "%s\n"])
def test_what_is_not_json_and_is_written_all_the_same(layout: str) -> None:
    record = '{"a": "tab\there, line\nend, \x01 and \x7f", "b": NaN, "c": -Infinity, '
    record += '"d": "NaN ] [ \\" \\\\", "e": "\\ud83d!"}'
    (found,) = values(layout % record)
    assert found["a"] == "tab\there, line\nend, \x01 and \x7f"
    assert (found["b"], found["c"]) == (None, None)
    assert found["d"] == 'NaN ] [ " \\'
    assert found["e"] in ("\ud83d!", "\ufeff!")  # cleaning drops both


def test_nan_in_json_lines_is_nothing() -> None:
    assert values('{"a": NaN}\n{"a": -Infinity}\n') == [{"a": None}, {"a": None}]


@pytest.mark.usefixtures("backend")
def test_numbers_are_what_they_are() -> None:
    (found,) = values('[{"a": 12345678901234567890123, "b": 1.5, "c": -2e3}]')
    assert found == {"a": 12345678901234567890123, "b": Decimal("1.5"), "c": -2000}


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(['"', "\\", "] [", "}{", "NaN"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    records=st.lists(st.dictionaries(st.text(max_size=4), any_json, max_size=3), min_size=1, max_size=5),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    layout=st.sampled_from(["array", "objects", "lines"]),
)
def test_records_do_not_depend_on_how_the_file_is_read(
    records: list[object], block: int, indent: int | None, ascii_only: bool, layout: str
) -> None:
    written = [
        json.dumps(record, indent=indent if layout != "lines" else None, ensure_ascii=ascii_only) for record in records
    ]
    text = f"[{', '.join(written)}]" if layout == "array" else "\n".join(written)
    before = jsonrecords.BLOCK_CHARACTERS
    jsonrecords.BLOCK_CHARACTERS = block
    try:
        assert values(text) == records
    finally:
        jsonrecords.BLOCK_CHARACTERS = before


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("text", "place", "seen"),
    [
        ('{"a": 1}\n{"a": 2}\n{"a": broken}\n{"a": 4}\n', "line 3", "broken"),
        ('{"a": 1}\n{"a": 2}\n{"a": "broken}\n{"a": 4}\n', "line 3", "broken"),
        ('{"a": 1}\n{"a": 2} trailing\n', "line 2", "trailing"),
        ('{"a": 1}\n{"a": ' + "[" * 100_000 + "\n", "line 2", "nested too deep"),
        ('{"a": 1}\n{"a": ' + "1" * 5_000 + "}\n", "line 2", "digits"),
        ('[{"a": 1}, {"a": 2}, {"a": broken}]', "record 3", "broken"),
        ('[{"a": 1}, {"a": 2}', "record 3", "cut short"),
        ('[{"a": 1}, {"a": "cut', "record 2", "cut short"),
        ('[{"a": 1}, {"a": 2}] trailing', "record 3", "trailing"),
        ('[{"a": 1}] [{"a": 2}, {"a": !}]', "record 3", "!"),
        ("[" * 100_000, "record 1", "nested deeper than 500"),
        ('[{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]", "record 1", "nested deeper than 500"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_place(text: str, place: str, seen: str) -> None:
    with pytest.raises(NotJson) as error:
        values(text)
    assert str(error.value).startswith(f"{place}: ")
    if (
        seen in ("broken", "trailing", "!", "cut short")
        and ijson.items_coro is not ijson.get_backend("python").items_coro
    ):
        assert seen in str(error.value)
    assert len(str(error.value)) < 300


def test_records_before_a_mistake_are_given() -> None:
    """`max_documents` may end before it."""
    found = json_records(io.StringIO('[{"a": 1}, {"a": 2}, !]'), "[", None)
    assert [next(found)[2], next(found)[2]] == [{"a": 1}, {"a": 2}]
    with pytest.raises(NotJson):
        next(found)
