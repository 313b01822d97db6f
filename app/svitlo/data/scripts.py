"""What depends on the script that a text is written in: words without spaces, vowels as marks, joiners.

Each rule looks at a text as a whole, so that a foreign name in an English article changes nothing.
"""

from __future__ import annotations

import re
import unicodedata

_DENSE = re.compile(
    "[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ec0-\u0ec6\u1000-\u102a\u103f\u1780-\u17b3"
    "\u3005\u3006\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Han."""
_VIRAMA = 9
"""The combining class of the sign that joins consonants. A joiner after it chooses the form of the letter."""

NON_JOINER, JOINER = "\u200c", "\u200d"


def count_words(text: str) -> int:
    """The number of words. In text of scripts without spaces, each letter counts as one."""
    words = text.split()
    if text.isascii():
        return len(words)
    dense = len(_DENSE.findall(text))
    solid = sum(map(len, words))
    if 4 * dense <= solid or 2 * dense <= sum(map(len, without_marks(text).split())):
        return len(words)
    return dense + sum(any(map(str.isalnum, word)) for word in _DENSE.sub(" ", text).split())


def without_marks(text: str) -> str:
    """The text without combining marks, which in many scripts are vowels and belong to the letter before them."""
    if text.isascii():
        return text
    return "".join(character for character in text if unicodedata.category(character)[0] != "M")


def without_joiners(text: str) -> str:
    """Without the invisible joiners, except where they are part of the spelling.

    That is between letters and after viramas of a text that is not mainly in Latin letters, and between emoji.
    """
    if NON_JOINER not in text and JOINER not in text:
        return text
    latin = sum(character.isascii() and character.isalpha() for character in text)
    is_latin = 2 * latin > sum(map(str.isalpha, text))
    kept: list[str] = []
    for number, character in enumerate(text):
        if character not in (NON_JOINER, JOINER) or _is_spelt(text, number, character, is_latin):
            kept.append(character)
    return "".join(kept)


def _is_spelt(text: str, number: int, joiner: str, is_latin: bool) -> bool:
    before, after = text[number - 1 : number], text[number + 1 : number + 2]
    if not before:
        return False
    if joiner == JOINER and after and _is_emoji(before) and _is_emoji(after):
        return True
    if is_latin:
        return False
    return unicodedata.combining(before) == _VIRAMA or (_is_letter(before) and bool(after) and _is_letter(after))


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _is_emoji(character: str) -> bool:
    return character == "\ufe0f" or "\U0001f3fb" <= character <= "\U0001f3ff" or unicodedata.category(character) == "So"
