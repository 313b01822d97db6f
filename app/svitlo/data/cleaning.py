"""Raw text to text worth learning: cleans up characters, entities, leftover markup, and holes left by extraction.

Every function is pure, and takes and returns `str`.
"""

from __future__ import annotations

import html
import re
import unicodedata

from svitlo.data.scripts import JOINER, NON_JOINER, without_joiners
from svitlo.data.tokenizer import END_OF_TEXT


def _odd_characters() -> dict[str, str]:
    """The replacement for each character that no one types on purpose."""
    invisible = [
        *range(0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
        *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000),
    ]  # fmt: skip
    spaces = [0x09, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000]
    line_ends = [0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029]
    odd = dict.fromkeys(map(chr, invisible), "")
    odd.update(dict.fromkeys(map(chr, spaces), " "))
    odd.update(dict.fromkeys(map(chr, line_ends), "\n"))
    del odd["\n"]
    return odd


_ODD = _odd_characters()
_JOINERS = {JOINER, NON_JOINER}

_TAGS = (
    "abbr|applet|b|big|blockquote|br|caption|center|chem|cite|code|del|div|em|font|gallery|h[1-6]|hr|i|imagemap|img|"
    "includeonly|ins|li|mapframe|maplink|math|noinclude|nowiki|object|ol|onlyinclude|p|poem|pre|ref|references|s|samp|"
    "score|section|small|source|span|strike|strong|sub|sup|syntaxhighlight|table|tbody|td|templatestyles|th|thead|"
    "timeline|tr|tt|u|ul|var"
)
_REFERENCE = re.compile(r"<ref\b[^<>]{0,500}(?:/>|>[^<>]{0,1000}</ref\s*>)", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.{0,2000}?-->", re.DOTALL)
_BREAK = re.compile(r"<br\b[^<>]{0,100}>", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]{{0,500}})?/?>", re.IGNORECASE)
_OPENING = re.compile(r"<([a-z0-9]+)([^<>]*)>", re.IGNORECASE)
_CLOSING = re.compile(r"</([a-z0-9]+)\s*>", re.IGNORECASE)
_ALONE = re.compile(
    "applet|blockquote|br|div|gallery|hr|imagemap|includeonly|li|mapframe|maplink|math|noinclude|nowiki|object|ol|"
    "onlyinclude|poem|ref|references|score|span|syntaxhighlight|tbody|td|templatestyles|th|thead|timeline|tr|ul"
)
"""Names that no one puts into brackets for anything but a tag, so that one alone is a leftover."""
_CATEGORY = re.compile(r"^\[\[(?:Category|File|Image):[^\n]*$", re.MULTILINE)
_LINK = re.compile(r"\[\[(?:[^\[\]|\n]{0,200}\|)?([^\[\]|\n]{0,300})\]\]")
_BRACKETS = re.compile(r"\[\[|\]\]|\{\{[^{}]{0,500}\}\}|\{\{|\}\}|'''+|__[A-Z]+__")
_PLACEHOLDER = re.compile(r"(?:formula|codice)_\d+")

# Patterns start with a plain character where possible: others are tried at hundreds of millions of places in a corpus.
_EMPTY_BRACKETS = re.compile(r"\([\s,;:/–-]*\)|\[[\s,;:]*\]")
_BRACKET_START = re.compile(r"\(\s*[,;:][\s,;:]*")
_BRACKET_END = re.compile(r"[,;:][\s,;:]*+(\)?)")
"""Marks with or without the closing bracket after them, so that a row of marks is scanned only once."""
_SPACED_MARK = re.compile(r" ([,;.!?:])(?=[ \n]|$)")
_DOUBLED_COMMA = re.compile(r",\s*,[\s,]*")
_LINE_START = re.compile(r"\n[,;][,; \n]*")
_LINE_EDGES = re.compile(r"\n[ \n]+")
_SPACES = re.compile(r"  +")
_VAST_GAP = re.compile(r"(?<=\s{1000})\s+")
"""White space that no one wrote. The tokenizer fails on a million characters of it."""
_BRACKET_ENDS = (",)", ";)", ":)", " )", "\n)")
_SPACED_MARKS = (" ,", " .", " ;", " :", " !", " ?")


def clean_characters(text: str) -> str:
    """One kind of space and of line end, nothing invisible, no end-of-text markers, composed letters."""
    if not text.replace("\n", " ").isprintable():  # a fast check: no odd character is printable
        found = _ODD.keys() & set(text)  # much faster than a pattern: nearly every text has few or none
        if "\r" in found:
            text = text.replace("\r\n", "\n")
        if not found.isdisjoint(_JOINERS):
            text = without_joiners(text)
            found -= _JOINERS
        for character in found:
            text = text.replace(character, _ODD[character])
    if END_OF_TEXT in text:
        text = text.replace(END_OF_TEXT, "\n")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean_text(text: str, *, is_markup: bool = True) -> str:
    """An encyclopaedic document: cleans characters, entities, markup and holes. No blank lines, no double spaces.

    Unless `is_markup`, what only looks like a tag stays: `copy <source> <target>`.
    """
    return without_markup(text, is_markup=is_markup)[0]


def without_markup(text: str, *, is_markup: bool) -> tuple[str, bool]:
    """`clean_text`, and whether it has removed markup."""
    if "&" in text:
        text = html.unescape(text)
        if "&" in text:  # `&amp;lt;` occurs where text was escaped twice
            text = html.unescape(text)
    before = text = clean_characters(text)
    if "<" in text:
        text = _remove_tags(text, is_markup)
    if "[" in text or "{" in text or "'''" in text or "__" in text:
        text = _CATEGORY.sub("", text)
        text = _LINK.sub(r"\1", text)
        text = _BRACKETS.sub("", text)
    if "_" in text:
        text = _PLACEHOLDER.sub("", text)
    return _fill_holes(text), text != before


def _remove_tags(text: str, is_markup: bool) -> str:
    text = _COMMENT.sub("", text)
    text = _REFERENCE.sub("", text)
    text = _BREAK.sub(" ", text)
    if is_markup:
        return _TAG.sub("", text)
    closed = {found[1].lower() for found in _CLOSING.finditer(text)}
    return _TAG.sub(lambda found: "" if _is_tag(found[0], closed) else found[0], text)


def _is_tag(tag: str, closed: set[str]) -> bool:
    """Whether it is a tag and not a word in brackets. `closed`: the names that also have a closing tag."""
    found = _OPENING.match(tag)
    if found is None or tag.endswith("/>"):
        return True
    has_right_form = not found[2].strip() or "=" in found[2]
    return has_right_form and (found[1].lower() in closed or _ALONE.fullmatch(found[1].lower()) is not None)


def _fill_holes(text: str) -> str:
    """Removed templates leave `()`, `(, `, ` ,`, double spaces, and lines that start with a comma or are empty."""
    if "(" in text or "[" in text:
        text = _BRACKET_START.sub("(", text)
        if any(end in text for end in _BRACKET_ENDS):
            text = _BRACKET_END.sub(lambda found: found[1] or found[0], text)
        text = _EMPTY_BRACKETS.sub("", text)
    if ",," in text or ", ," in text:
        text = _DOUBLED_COMMA.sub(", ", text)
    if "  " in text:
        text = _SPACES.sub(" ", text)
    if any(mark in text for mark in _SPACED_MARKS):
        text = _SPACED_MARK.sub(r"\1", text)
    text = text.replace(" \n", "\n")
    text = _LINE_EDGES.sub("\n", text)
    return _LINE_START.sub("\n", text).strip(" \n,;")


def clean_content(text: str) -> str:
    """Text from a conversation: cleans characters only. Code and lists keep their layout."""
    return _VAST_GAP.sub("", clean_characters(text.replace("\t", "    ")).strip())


def clean_layout(text: str) -> str:
    """Text whose indentation and brackets mean something, such as code: cleans characters only."""
    text = _VAST_GAP.sub("", clean_characters(text.replace("\t", "    ")))
    return text.rstrip().lstrip("\n")


def has_layout(text: str) -> bool:
    """Whether a line after the first is indented."""
    return "\n  " in text.rstrip() or "\n\t" in text.rstrip()


def normalized(text: str) -> str:
    """The text without differences in case and white space. Equal for texts that a reader would call the same."""
    return " ".join(text.casefold().split())
