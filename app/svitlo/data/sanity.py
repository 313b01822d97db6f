"""Does this look like what it should be? Checks that stop early, name the file and show what was found."""

from __future__ import annotations

import re

from svitlo.config import Source
from svitlo.data.formats import Raw, all_formats, needed_names, texts_in
from svitlo.data.head import Head, head_of, is_parquet
from svitlo.data.scripts import without_marks
from svitlo.data.textstream import advice
from svitlo.errors import DataError

SAMPLE_CHARACTERS = 20_000
"""The language is judged by this much text at the beginning of each file."""
FEWEST_WORDS = 200
"""Fewer words than this cannot be judged. A phase with fewer words in total is not a corpus."""
FEWEST_ENGLISH = 0.08
"""In English text, a third of the words or more are among the common ones. In lists of names, a tenth."""

_COMMON_WORDS = frozenset(
    """
    the of and a to in is you that it he was for on are as with his they i at be this have from or one had by
    but not what all were we when your can said there an which she do how their if will up about out them then
    so some her would make like him into has more my no than been who its now people did get me our just know
    """.split()  # noqa: SIM905 — a hundred quoted words are no easier to read
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")

_MAGIC = {
    b"%PDF-": "a PDF document", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"GIF87a": "a GIF image",
    b"GIF89a": "a GIF image", b"\x7fELF": "a program", b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive", b"{\\rtf": "an RTF document", b"\xd0\xcf\x11\xe0": "an old Office document",
    b"SQLite format 3\0": "an SQLite database", b"ARROW1\0": "an Arrow file", b"\x80\x04": "a pickle",
    b"\x93NUMPY": "a NumPy array",
}  # fmt: skip
_MARKUP = {
    "<!doctype html": "an HTML page", "<html": "an HTML page", "<mediawiki": "a dump of a wiki", "<?xml": "XML",
}  # fmt: skip
_HTML = re.compile(r"</(?:p|div|td|tr|li|span|a|body|table|h[1-6])>", re.IGNORECASE)
FEWEST_TAGS = 10
CHARACTERS_FOR_TAG = 1_000
"""A text with more closing tags than one in so many characters is HTML."""
_MARKS = {
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip


def check_bytes(name: str, source: Source, content: bytes) -> None:
    """Check the first bytes of a stream. Raises `DataError` if they cannot be text."""
    for magic, kind in _MAGIC.items():
        if content.startswith(magic):
            raise DataError(
                f"{name}: is {kind}, not text (it begins with {content[:16]!r}). Convert it, or name other files"
            )
    if source.encoding is not None:
        if is_parquet(content):
            raise DataError(
                f"{name}: is a Parquet file, whose text needs no `encoding`: remove it from the source {source.name}"
            )
        return
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise DataError(
                f"{name}: is {encoding.upper()} ({content[:16]!r}), not UTF-8. Say `encoding: {encoding}` for the "
                f"source {source.name} in data.yaml"
            )
    control = sum(byte < 9 or 13 < byte < 32 for byte in content)
    if not is_parquet(content) and (b"\0" in content or control > len(content) // 100):
        at = next(number for number, byte in enumerate(content) if byte < 9 or 13 < byte < 32)
        found = advice(content) if b"\0" in content else None
        raise DataError(
            f"{name}: not text: {control:,} control characters in the first {len(content):,} bytes, for example in "
            f"{content[max(0, at - 10) : at + 20]!r}"
            + (f". {found} for the source {source.name}" if found and "`encoding: utf" in found else "")
        )


def check_head(name: str, source: Source, content: bytes) -> None:
    """Check the first text of a stream. Raises `DataError` if it is markup, or clearly of another format."""
    head = head_of(name, content)
    if head.kind == "parquet":
        return
    for beginning, kind in _MARKUP.items():
        if source.markup is None and head.start[:20].lower().startswith(beginning):
            raise DataError(
                f"{name}: is {kind} (it begins with {head.start[:40]!r}), whose markup would be learnt as language. "
                f"Save it as text (`pandoc -t plain`), or dumps of wikis with WikiExtractor (`format: wikiextractor`)"
            )
    tags = _HTML.findall(head.start) if head.kind is None and source.markup is None else []
    if len(tags) > max(FEWEST_TAGS, len(head.start) // CHARACTERS_FOR_TAG):
        raise DataError(
            f"{name}: holds HTML ({len(tags):,} tags such as {tags[0]} at its beginning: {head.start[:60]!r}). Save it "
            f"as text (`pandoc -t plain`), or say `markup: false` for the source {source.name} to learn it as it is"
        )
    _check_format(head, source)


def _check_format(head: Head, source: Source) -> None:
    """The user's choice of format counts, unless the file is clearly of another one and lacks the required fields."""
    formats = all_formats()
    chosen = formats[source.format]
    likely = [found for found in formats.values() if found.looks_like(head)]
    if not likely or chosen in likely or (head.kind == "json" and needed_names(chosen, source) <= head.fields):
        return
    best = max(likely, key=lambda found: len(found.fields))
    raise DataError(
        f"{head.name}: looks like {best.name}, and data.yaml says `format: {chosen.name}` (source {source.name}). It "
        f"begins with {head.start[:80]!r}"
    )


def text_of(raw: Raw) -> str:
    """All the text of a raw document."""
    return " ".join(texts_in(raw.content))


def size_of(raw: Raw) -> int:
    """About how many characters a raw document has."""
    return sum(map(len, texts_in(raw.content)))


class LanguageCheck:
    """Judges the beginning of one stream of documents, once enough of it has been seen."""

    def __init__(self, name: str, *, expect_english: bool) -> None:
        self._name = name
        self._expect_english = expect_english
        self._sample: list[str] = []
        self._length = 0
        self._is_done = False

    def see(self, raw: Raw) -> None:
        """Add a document to the sample. Raises `DataError` once the sample is large enough and looks wrong."""
        if not self._is_done:
            self.see_text(text_of(raw)[:SAMPLE_CHARACTERS])

    def see_text(self, text: str) -> None:
        """Add text to the sample, as `see` does."""
        if text and not self._is_done:
            self._sample.append(text)
            self._length += len(text)
            if self._length >= SAMPLE_CHARACTERS:
                self.finish()

    @property
    def has_seen(self) -> bool:
        return bool(self._length)

    def finish(self) -> str:
        """Judge the sample collected so far. Returns it if it is too small to be judged. Raises `DataError`."""
        if self._is_done:
            return ""
        self._is_done = True
        sample = " ".join(self._sample)
        self._sample = []
        seen = " ".join(sample.split())[:100]
        solid = sum(map(len, sample.split()))
        bare = without_marks(sample)
        words = _WORD.findall(bare.lower())
        letters = sum(map(len, words)) + solid - sum(map(len, bare.split()))
        if not words:
            raise DataError(f"{self._name}: no words in the first {len(sample):,} characters: {seen!r}")
        if letters < 0.5 * solid and solid > 1_000:
            raise DataError(
                f"{self._name}: does not look like text in any language: only {letters / solid:.0%} of its characters "
                f"are letters: {seen!r}"
            )
        if len(words) < FEWEST_WORDS and solid <= 5_000:
            return sample
        share = sum(word in _COMMON_WORDS for word in words) / len(words)
        if self._expect_english and share < FEWEST_ENGLISH:
            raise DataError(
                f"{self._name}: does not look like English: {share:.1%} of its first {len(words):,} words are among "
                f"the most common ones, at least {FEWEST_ENGLISH:.0%} were expected: {seen!r}. If it is another "
                f"language on purpose, set `check_language: false` for this source"
            )
        return ""
