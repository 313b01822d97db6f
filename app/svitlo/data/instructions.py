"""What a raw document becomes. For the formats of phase 2: turns to a conversation that fits a window.

What cannot fit is dropped. Cutting never shortens a reply. Everything here is pure: the same raw document, tokenizer
and window give the same outcome.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from svitlo.data.cleaning import normalized
from svitlo.data.conversations import render
from svitlo.data.scripts import count_words
from svitlo.data.tokenizer import Tokenizer


class Outcome(NamedTuple):
    """What a raw document became."""

    dropped: str | None
    """Why it is not used. The other fields are then empty."""
    digest: int = 0
    """64 bits that identify the content, regardless of case and spacing."""
    split_digest: int = 0
    """64 bits that decide between training and validation."""
    words: int = 0
    tokens: bytes = b""
    """Little-endian uint16."""
    mask: bytes = b""
    """One byte for each token, 1 if it carries loss. Empty in phase 1."""
    changed: str | None = None
    """What was left out of it, if anything."""
    had_markup: bool = False
    """Whether markup was removed from it."""


def dropped(reason: str) -> Outcome:
    return Outcome(reason)


def digest(content: str) -> int:
    """64 bits of a hash of a text, `normalized`: the same for texts that differ only in case and white space."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def outcome_of(contents: list[str], split_by: str, tokens: bytes, mask: bytes, changed: str | None = None) -> Outcome:
    """A conversation that is used. `split_by`: the text that decides between training and validation."""
    text = "\n\n".join(contents)
    return Outcome(
        dropped=None,
        digest=digest(normalized(text)),
        split_digest=digest(normalized(split_by)),
        words=count_words(text),
        tokens=tokens,
        mask=mask,
        changed=changed,
    )


def too_long(window: int) -> Outcome:
    """A conversation that is not used because it does not fit."""
    return dropped(f"longer than {window} tokens")


def fitting_turns(
    turns: list[str], split_by: str, tokenizer: Tokenizer, window: int, changed: str | None = None
) -> Outcome:
    """User, assistant, user, ...: as many whole pairs of turns from the start as fit the window. None is blank.

    `changed`: what was left out already.
    """
    if len(turns) % 2:
        changed = "last turn without a reply left out"
    contents = turns[: len(turns) // 2 * 2]
    tokens, mask = render(tokenizer, contents)
    while len(mask) > window:
        contents = contents[:-2]
        if not contents:
            return too_long(window)
        tokens, mask = render(tokenizer, contents)
        changed = "later turns left out"
    return outcome_of(contents, split_by, tokens, mask, changed)
