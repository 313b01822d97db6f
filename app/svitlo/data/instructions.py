"""Alpaca, SQuAD and DailyDialog to conversations that fit a window.

What cannot fit is dropped; what is cut is cut so that no reply is ever shortened. Everything here is pure: the same raw
document, tokenizer and window give the same outcome.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from svitlo.data.cleaning import clean_content, normalized
from svitlo.data.conversations import render
from svitlo.data.dialogue import detokenize
from svitlo.data.formats import Question, Raw, Text
from svitlo.data.tokenizer import Tokenizer

NOT_IN_TEXT = "The text does not say."
"""The reply to a question that its context does not answer."""


class Outcome(NamedTuple):
    """What became of a raw document."""

    dropped: str | None
    """Why it is not used; the other fields are then empty."""
    digest: int = 0
    """64 bits that identify the content, whatever its case and spacing."""
    split_digest: int = 0
    """64 bits that decide between training and validation."""
    words: int = 0
    tokens: bytes = b""
    """Little-endian uint16."""
    mask: bytes = b""
    """One byte for each token, 1 where it carries loss; empty in phase 1."""
    changed: str | None = None
    """What was left out of it, if anything."""


def dropped(reason: str) -> Outcome:
    return Outcome(reason)


def digest(content: str) -> int:
    """64 bits of a hash of a text, `normalized`: the same for texts that differ only in case and white space."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def conversation(raw: Raw, tokenizer: Tokenizer, window: int) -> Outcome:
    """The conversation in a raw document: at most `window` tokens."""
    if isinstance(raw, Question):
        return squad(raw, tokenizer, window)
    if isinstance(raw, dict):
        return alpaca(raw, tokenizer, window)
    assert not isinstance(raw, Text)
    return dailydialog(raw, tokenizer, window)


def _outcome(contents: list[str], split_by: str, tokens: bytes, mask: bytes, changed: str | None = None) -> Outcome:
    return Outcome(
        dropped=None,
        digest=digest(normalized("\n\n".join(contents))),
        split_digest=digest(normalized(split_by)),
        words=sum(len(content.split()) for content in contents),
        tokens=tokens,
        mask=mask,
        changed=changed,
    )


def _too_long(window: int) -> Outcome:
    return dropped(f"longer than {window} tokens")


# --- Alpaca ----------------------------------------------------------------------------------------------------------

_NO_INPUT = re.compile(r"\W*(?:no|none?|not)?\W*(?:input|applicable)(?: (?:needed|required|provided|given))?\W*", re.I)
_NO_INPUT_WORDS = {"", "none", "n/a", "na", "null", "<>", "-"}
_NO_OUTPUT = re.compile(r"\W*no[\s_-]*output\b.{0,60}", re.IGNORECASE | re.DOTALL)


def alpaca(raw: dict[str, str], tokenizer: Tokenizer, window: int) -> Outcome:
    """An instruction, with its input where there is one, and the output as reply."""
    instruction, given, output = (clean_content(raw.get(key) or "") for key in ("instruction", "input", "output"))
    if not instruction:
        return dropped("no instruction")
    if not output:
        return dropped("no output")
    if _NO_OUTPUT.fullmatch(output):
        return dropped("output says that there is none")
    if given.lower() in _NO_INPUT_WORDS or _NO_INPUT.fullmatch(given):
        given = ""
    contents = [f"{instruction}\n\n{given}" if given else instruction, output]
    tokens, mask = render(tokenizer, contents)
    if len(mask) > window:
        return _too_long(window)
    return _outcome(contents, instruction, tokens, mask)


# --- SQuAD -----------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\S+")


def squad(raw: Question, tokenizer: Tokenizer, window: int) -> Outcome:
    """A context and a question about it; the reply is the answer, or that the text does not say.

    A context that is too long is cut at word borders around the answer, which always stays whole.
    """
    question = " ".join(clean_content(raw.question).split())
    if not question or not raw.context.strip():
        return dropped("no question")
    if raw.is_impossible:
        reply, start, end = NOT_IN_TEXT, 0, 0
    elif raw.answer is None or not raw.answer.strip():
        return dropped("no answer")
    else:
        start = raw.answer_start
        if raw.context[start : start + len(raw.answer)] != raw.answer:
            start = raw.context.find(raw.answer)
            if start < 0:
                return dropped("the answer is not in the text")
        end = start + len(raw.answer)
        reply = clean_content(raw.answer)
        if not reply:
            return dropped("no answer")

    contents = [f"{_clean_context(raw.context)}\n\n{question}", reply]
    tokens, mask = render(tokenizer, contents)
    changed = None
    if len(mask) > window:
        excerpt: _Excerpt | None = _cut_around(raw.context, start, end, len(mask) - window, tokenizer)
        while excerpt is not None:
            contents[0] = f"{_clean_context(excerpt.text)}\n\n{question}"
            tokens, mask = render(tokenizer, contents)
            if len(mask) <= window:
                break
            excerpt = excerpt.shorter()
        if excerpt is None:
            return _too_long(window)
        changed = "context cut around the answer"
    return _outcome(contents, raw.title, tokens, mask, changed)


def _clean_context(context: str) -> str:
    return "\n".join(" ".join(line.split()) for line in clean_content(context).splitlines() if line.strip())


class _Excerpt(NamedTuple):
    """Words `first` to `last` of a context; words `needed_first` to `needed_last` must stay."""

    context: str
    words: list[tuple[int, int]]
    first: int
    last: int
    needed_first: int
    needed_last: int

    @property
    def text(self) -> str:
        return self.context[self.words[self.first][0] : self.words[self.last][1]]

    def shorter(self) -> _Excerpt | None:
        """One word less, from the side that has more to spare; None where only what must stay is left."""
        before, after = self.needed_first - self.first, self.last - self.needed_last
        if before == after == 0:
            return None
        return self._replace(first=self.first + 1) if before > after else self._replace(last=self.last - 1)


def _cut_around(context: str, start: int, end: int, excess: int, tokenizer: Tokenizer) -> _Excerpt:
    """The context without about `excess` tokens, taken from the side farther from the answer first.

    Where there is no answer (`start == end`), the beginning stays.
    """
    words = [found.span() for found in _WORD.finditer(context)]
    if start == end:
        needed_first = needed_last = 0
    else:
        needed_first = next(number for number, word in enumerate(words) if word[1] > start)
        needed_last = next(number for number in range(len(words) - 1, -1, -1) if words[number][0] < end)
    excerpt = _Excerpt(context, words, 0, len(words) - 1, needed_first, needed_last)
    sizes = [len(tokenizer.pack(" " + clean_content(context[first:last]))) // 2 for first, last in words]
    while excess > 0 and (cut := excerpt.shorter()) is not None:
        excess -= sizes[excerpt.first] if cut.first > excerpt.first else sizes[excerpt.last]
        excerpt = cut
    return excerpt


# --- DailyDialog -----------------------------------------------------------------------------------------------------


def dailydialog(raw: list[str], tokenizer: Tokenizer, window: int) -> Outcome:
    """Two people who take turns: the second is the assistant. Whole pairs of turns from the start, as many as fit."""
    utterances = [detokenize(utterance) for utterance in raw]
    if len(utterances) < 2 or not all(utterances):
        return dropped("fewer than two utterances")
    changed = "last turn without a reply left out" if len(utterances) % 2 else None
    contents = utterances[: len(utterances) // 2 * 2]
    tokens, mask = render(tokenizer, contents)
    while len(mask) > window:
        contents = contents[:-2]
        if not contents:
            return _too_long(window)
        tokens, mask = render(tokenizer, contents)
        changed = "later turns left out"
    return _outcome(contents, "\n\n".join(utterances), tokens, mask, changed)
