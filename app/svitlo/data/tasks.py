"""What one raw document becomes: cleaned and tokenised, or dropped with a reason. Runs in the worker processes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from svitlo.data.cleaning import clean_layout, clean_text, has_layout, normalized, without_markup
from svitlo.data.formats import Raw, Text, to_conversation
from svitlo.data.instructions import Outcome, digest, dropped
from svitlo.data.scripts import count_words
from svitlo.data.tokenizer import END_OF_TEXT, END_OF_TEXT_TOKEN, Tokenizer, pack

_HAS_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Task(ABC):
    """How the raw documents of one phase are processed."""

    validation_fraction: float
    only_split: str | None = None
    """Tokenise only the documents of this split, if the others are already on disk."""

    by_record: frozenset[int] = frozenset()
    """Groups whose documents are divided one by one."""

    @abstractmethod
    def outcome(self, raw: Raw, tokenizer: Tokenizer) -> Outcome:
        """What a raw document becomes."""

    def split_of(self, outcome: Outcome) -> str:
        """`train` or `validation`, decided by the document's hash alone."""
        decides = outcome.digest if outcome.split_digest in self.by_record else outcome.split_digest
        return "validation" if decides < int(self.validation_fraction * 2**64) else "train"


@dataclass(frozen=True)
class TextTask(Task):
    """Plain text: a document of enough words, followed by the end-of-text token."""

    min_document_words: int = 1

    def outcome(self, raw: Raw, tokenizer: Tokenizer) -> Outcome:
        assert isinstance(raw.content, Text)
        cleaned = [clean_document(part) for part in _parts_of(raw.content)]
        texts = [text for text, _ in cleaned if text]
        if not texts:
            return dropped("empty")
        text = "\n".join(texts)
        content = normalized(text)
        words = count_words(content)
        if words < self.min_document_words:
            return dropped(f"fewer than {self.min_document_words} words")
        if not _HAS_LETTER.search(text):
            return dropped("no letters")
        identity = digest(content)
        changed = "divided at end-of-text markers" if len(texts) > 1 else None
        if _keeps_layout(raw.content):
            changed = f"{changed}, and indented text kept as it is" if changed else "indented text kept as it is"
        outcome = Outcome(None, identity, identity, words, changed=changed, had_markup=any(had for _, had in cleaned))
        if self.only_split not in (None, self.split_of(outcome)):
            return outcome
        end = pack([END_OF_TEXT_TOKEN])
        return outcome._replace(tokens=b"".join(tokenizer.pack(text) + end for text in texts))


@dataclass(frozen=True)
class ConversationTask(Task):
    """A conversation of at most `window` tokens."""

    window: int = 0

    def outcome(self, raw: Raw, tokenizer: Tokenizer) -> Outcome:
        return to_conversation(raw, tokenizer, self.window)


def _parts_of(raw: Text) -> list[Text]:
    """The document, or all documents in it where a record holds end-of-text markers."""
    if END_OF_TEXT not in raw.body:
        return [raw]
    first, *others = raw.body.split(END_OF_TEXT)
    return [raw._replace(body=first), *(raw._replace(title="", body=part) for part in others)]


def _keeps_layout(raw: Text) -> bool:
    """Whether indentation and brackets stay. Articles, which have titles, are never taken for code."""
    return has_layout(raw.body) and not raw.title if raw.markup is None else not raw.markup


def clean_document(raw: Text) -> tuple[str, bool]:
    """A document of plain text: its title as first line, then its text. Empty if there is no text.

    Also returns whether markup was removed from its text.
    """
    title = clean_text(raw.title)
    if _keeps_layout(raw):
        body, had_markup = clean_layout(raw.body), False
    else:
        body, had_markup = without_markup(raw.body, is_markup=bool(raw.markup or raw.title))
    return (f"{title}\n{body}" if title and body else body), had_markup
