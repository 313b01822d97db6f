"""Scripts without spaces, with vowels as marks, and with joiners that are part of the spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from svitlo.config import Source
from svitlo.data.cleaning import clean_content, clean_text
from svitlo.data.rawfiles import find_files
from svitlo.data.scripts import count_words
from svitlo.data.sources import FileDocuments, KnownDigests

BURMESE = "ဒီ စာအုပ် နံပါတ် ကို မြန်မာ ဘာသာ ဖြင့် ရေးသား ထား ပြီး ကလေး များ က နွေရာသီ ကျောင်းပိတ်ရက် တွင် ဖတ်ခဲ့ ကြ သည်"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("two words", 2),
        ("", 0),
        ("Київ — місто", 3),
        ("物番号0は人々が家に置く小さな物です。", 18),
        ("ภาษาไทย", 7),
        ("In English, Tokyo is written 東京 and read as it sounds", 11),
        ("한국어 문장", 2),
    ],
)
def test_words_are_counted_in_a_way_that_fits_the_script(text: str, count: int) -> None:
    assert count_words(text) == count


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("کتاب\u200cها را می\u200cخوانم", "کتاب\u200cها را می\u200cخوانم"),
        ("\u200cکتاب \u200cها\u200d", "کتاب ها"),
        ("ද්\u200dය ളര്\u200d ക", "ද්\u200dය ളര്\u200d ക"),
        ("a family: 👨\u200d👩\u200d👧 and ❤\ufe0f\u200d🔥", "a family: 👨\u200d👩\u200d👧 and ❤\ufe0f\u200d🔥"),
        ("the word (کتاب\u200cها) in an English article", "the word (کتابها) in an English article"),
        ("zero\u200cwidth\u200d", "zerowidth"),
        ("کتاب\u200bها\ufeff", "کتابها"),
    ],
)
def test_joiners_stay_where_they_are_spelling(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean
    assert clean_content(raw) == clean


def test_marks_count_as_letters(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(f"{BURMESE} {number}" for number in range(30)))
    source = Source(name="s", format="text", files=["t.txt"], check_language=False)
    assert (
        len(list(FileDocuments(source, find_files(source, tmp_path, print).files, KnownDigests({})).read(0, 0))) == 30
    )
