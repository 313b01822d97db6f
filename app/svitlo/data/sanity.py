"""Does this look like what it should be? Checks that stop early, name the file and show what was seen."""

from __future__ import annotations

import re

from svitlo.data.formats import Question, Raw, Text
from svitlo.errors import DataError

SAMPLE_CHARACTERS = 20_000
"""The language is judged by so much text at the beginning of each file."""
FEWEST_WORDS = 200
"""Fewer words than this cannot be judged, and a phase with fewer in all is no corpus."""
FEWEST_ENGLISH = 0.08
"""Of English text, a third of the words and more are among the common ones; of lists of names, a tenth."""

_COMMON_WORDS = frozenset(
    """
    the of and a to in is you that it he was for on are as with his they i at be this have from or one had by
    but not what all were we when your can said there an which she do how their if will up about out them then
    so some her would make like him into has more my no than been who its now people did get me our just know
    """.split()  # noqa: SIM905 — a hundred quoted words are no easier to read
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

_MAGIC = {
    b"%PDF": "a PDF document", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image",
    b"PAR1": "a parquet file", b"\x7fELF": "a program", b"7z\xbc\xaf": "a 7-Zip archive", b"Rar!": "a RAR archive",
    b"{\\rtf": "an RTF document", b"\xd0\xcf\x11\xe0": "an old Office document", b"SQLite": "an SQLite database",
    b"ARROW1": "an Arrow file", b"\x80\x04": "a pickle", b"\x93NUMPY": "a NumPy array",
}  # fmt: skip
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def check_head(name: str, format_name: str, head: bytes) -> None:
    """Look at the first bytes of a stream. Raises `DataError` for what is not text, or plainly another format."""
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(
                f"{name}: is {kind} (it begins with {head[:16]!r}) and not text. Convert it, or name others"
            )
    if head.startswith(_UTF16):
        raise DataError(f"{name}: is UTF-16 ({head[:16]!r}). Convert it to UTF-8: `iconv -f UTF-16 -t UTF-8`")
    control = sum(byte < 9 or 13 < byte < 32 for byte in head)
    if b"\0" in head or control > len(head) // 100:
        at = next(number for number, byte in enumerate(head) if byte < 9 or 13 < byte < 32)
        raise DataError(
            f"{name}: not text: {control:,} control characters in the first {len(head):,} bytes, for example in "
            f"{head[max(0, at - 10) : at + 20]!r}"
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    seen = start[:80].decode("utf-8", "replace")
    likely = _likely_format(start)
    if not start or likely is None:
        return
    accepted = {"wikiextractor-json": {"wikiextractor", "jsonl"}, "json": {"alpaca", "squad", "jsonl"}}
    if format_name not in accepted.get(likely, {likely}):
        raise DataError(
            f"{name}: looks like {likely}, and data.yaml says `format: {format_name}`. It begins with {seen!r}"
        )


def _likely_format(start: bytes) -> str | None:
    if start.startswith(b"<doc id="):
        return "wikiextractor"
    if b" __eou__" in start[:4_096]:
        return "dailydialog"
    if start[:1] in (b"{", b"["):
        keys = set(re.findall(rb'"(\w+)"\s*:', start[:65_536]))
        if {b"paragraphs", b"qas"} & keys or {b"context", b"answers"} <= keys:
            return "squad"
        if {b"instruction", b"output"} <= keys:
            return "alpaca"
        if {b"title", b"text"} <= keys:
            return "wikiextractor-json"
        if b'":' in start[:65_536]:
            return "json"
    return None


def text_of(raw: Raw) -> str:
    """All the text of a raw document."""
    if isinstance(raw, Text):
        return f"{raw.title} {raw.body}"
    if isinstance(raw, Question):
        return f"{raw.context} {raw.question}"
    return " ".join(raw.values() if isinstance(raw, dict) else raw)


def size_of(raw: Raw) -> int:
    """About how many characters a raw document has."""
    if isinstance(raw, Question):
        return len(raw.context) + len(raw.question)
    return sum(map(len, raw.values() if isinstance(raw, dict) else raw))


class LanguageCheck:
    """Judges the beginning of one stream of documents, once enough of it has been seen."""

    def __init__(self, name: str, *, expect_english: bool) -> None:
        self._name = name
        self._expect_english = expect_english
        self._sample: list[str] = []
        self._length = 0
        self._is_done = False

    def see(self, raw: Raw) -> None:
        """Take a document into the sample. Raises `DataError` once the sample is large enough and looks wrong."""
        if not self._is_done:
            text = text_of(raw)[:SAMPLE_CHARACTERS]
            self._sample.append(text)
            self._length += len(text)
            if self._length >= SAMPLE_CHARACTERS:
                self.finish()

    def finish(self) -> None:
        """Judge what there is. Raises `DataError`."""
        if self._is_done:
            return
        self._is_done = True
        sample = " ".join(self._sample)
        self._sample = []
        seen = " ".join(sample.split())[:100]
        words = _WORD.findall(sample.lower())
        letters = sum(map(len, words))
        solid = sum(map(len, sample.split()))
        if not words:
            raise DataError(f"{self._name}: no words in the first {len(sample):,} characters: {seen!r}")
        if letters < 0.5 * solid and solid > 1_000:
            raise DataError(
                f"{self._name}: does not look like text in any language: only {letters / solid:.0%} of its characters "
                f"are letters: {seen!r}"
            )
        share = sum(word in _COMMON_WORDS for word in words) / len(words)
        if self._expect_english and share < FEWEST_ENGLISH and (len(words) >= FEWEST_WORDS or solid > 5_000):
            raise DataError(
                f"{self._name}: does not look like English: {share:.1%} of its first {len(words):,} words are among "
                f"the most common ones, at least {FEWEST_ENGLISH:.0%} were expected: {seen!r}. If it is another "
                f"language on purpose, set `check_language: false` for this source"
            )
