"""Text is cleaned of what extraction and tokenisation left in it. The lines have shapes found in real data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svitlo.data.cleaning import _ODD, clean_characters, clean_content, clean_text, normalized
from svitlo.data.dialogue import detokenize


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Salt &amp; pepper are &quot;spices&quot;.", 'Salt & pepper are "spices".'),
        ("Twice escaped &amp;lt;br&amp;gt; here.", "Twice escaped here."),
        ("First&lt;br&gt;second", "First second"),
        ('A fact.&lt;ref name="x/2013"&gt;&lt;/ref&gt; Another.', "A fact. Another."),
        ("A fact.<ref>Smith, 1990</ref> Another.", "A fact. Another."),
        ("<nowiki>plain</nowiki> and <onlyinclude>kept</onlyinclude>", "plain and kept"),
        ("a < b and b > c", "a < b and b > c"),
        ("Seen.<!-- a note\nof two lines --> Again.", "Seen. Again."),
        ("[[Education]] is [[Teaching|taught]] in [[schools", "Education is taught in schools"),
        ("[[Category:Learning]]\nText", "Text"),
        ("'''Bold''' start {{cite}}", "Bold start"),
        ("where formula_12 is the mass", "where is the mass"),
        ("Seoul () is a city.", "Seoul is a city."),
        ("History (, from Greek) began.", "History (from Greek) began."),
        ("Connes (; born 1947) works.", "Connes (born 1947) works."),
        ("A title (IAST: ) is given.", "A title (IAST) is given."),
        ("traveling at about .", "traveling at about."),
        ("One , two ,, three", "One, two, three"),
        (", a village, lies here.", "a village, lies here."),
        ("First line.\n, second", "First line.\nsecond"),
        ("First line.\n;\nsecond", "First line.\nsecond"),
        ("non\u00a0breaking\u2009spaces", "non breaking spaces"),
        ("zero\u200bwidth\ufeff and soft\u00adhyphen", "zerowidth and softhyphen"),
        ("bell\x07 and null\x00", "bell and null"),
        ("Windows\r\nline", "Windows\nline"),
        ("One.\n\n \nTwo.", "One.\nTwo."),
        ("a  b   c", "a b c"),
        ("e\u0301tude", "étude"),
        ("lone \ud800surrogate", "lone surrogate"),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@given(st.text(alphabet=st.sampled_from("ab ,.;()[]{}<>&\n\t\u00a0'_=|"), max_size=60))
def test_clean_text_has_no_blank_lines_or_double_spaces(text: str) -> None:
    clean = clean_text(text)
    assert "\n\n" not in clean
    assert "  " not in clean
    assert clean == clean.strip()


def test_contents_keep_their_layout() -> None:
    assert clean_content("def f():\r\n\treturn 1\n\n# end\x01 ") == "def f():\n    return 1\n\n# end"
    assert clean_characters("plain") == "plain"


def test_normalized_ignores_case_and_space() -> None:
    assert normalized(" The\nSAME  text") == normalized("the same text")


@pytest.mark.parametrize(
    ("raw", "typed"),
    [
        ("The kitchen stinks . ", "The kitchen stinks."),
        ("I don ’ t honestly like that .", "I don't honestly like that."),
        ("I ’ Ve tried , and he ’ s out .", "I've tried, and he's out."),
        ("You ’ re right . I ’ ll go , I ’ d say .", "You're right. I'll go, I'd say."),
        ("I'm not sure .", "I'm not sure."),
        ("at five o ’ clock , ma ’ am", "at five o'clock, ma'am"),
        ("fifteen minutes ’ walk", "fifteen minutes' walk"),
        ("Mr . O ’ Neil is here", "Mr. O'Neil is here"),
        ("right.But I know", "right. But I know"),
        ("OK.She left,but came", "OK. She left, but came"),
        ("Get in.please", "Get in. please"),
        ("mail a.b@c.com or www.Site.com .", "mail a.b@c.com or www.Site.com."),
        ("好。Yes， no？ Well！", "好. Yes, no? Well!"),
        ("It costs $ 1 , 000 . ", "It costs $1,000."),
        ("10 : 30 p . m . today", "10:30 p.m. today"),
        ("that is 3 . 5 percent , 20 % off", "that is 3.5 percent, 20% off"),
        ("Well ... now . . . stay", "Well... now... stay"),
        ('He said , " Come in " , and left .', 'He said, "Come in", and left.'),
        ("We always said “ American way ” .", 'We always said "American way".'),
        ("means ‘ The Fleas ' .", "means 'The Fleas'."),
        ("the TOEFL ( Test of English ) score", "the TOEFL (Test of English) score"),
        ("a T-shirt and / or this", "a T-shirt and / or this"),
    ],
)
def test_detokenize(raw: str, typed: str) -> None:
    assert detokenize(raw) == typed


def test_white_space_that_nobody_wrote_does_not_stop_the_tokenizer() -> None:
    assert clean_content("a" + " " * 1_500_000 + "b") == "a" + " " * 1_000 + "b"
    assert clean_content("a" + " \n" * 400 + "b") == "a" + " \n" * 400 + "b"


def test_nothing_odd_is_printable() -> None:
    """`clean_characters` skips text that is printable throughout."""
    assert not [character for character in _ODD if character.isprintable()]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit", [";", ", ", "; ;", "-", "(", "( ", "[[", "{{", "'", ". ", " ,", "\n ", "s", "<ref", "&amp;"]
)
def test_a_row_of_marks_costs_what_its_length_costs(unit: str) -> None:
    """With quadratic time, this would take hours."""
    row = unit * (200_000 // len(unit))
    for text in (row, f"a {row} ,) b", f"a ' {row}"):
        clean_text(text)
        clean_content(text)
        detokenize(text)


def test_marks_before_a_closing_bracket_go() -> None:
    assert clean_text("a (b;;, ) c; d, e:") == "a (b) c; d, e:"
