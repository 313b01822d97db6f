"""Conversations of any number of turns, as chat services and most trainers exchange them.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}

A system text (a message of that role, or a separate field `system`) goes before the first user turn.
"""

from __future__ import annotations

import contextlib
import enum
import json
from typing import Any, ClassVar, NamedTuple

from svitlo.config import Source
from svitlo.data.cleaning import clean_content
from svitlo.data.formats import Format
from svitlo.data.head import Head
from svitlo.data.instructions import Outcome, dropped, fitting_turns
from svitlo.data.records import Place, is_nothing, text_in
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError
from svitlo.units import shown


class Role(enum.Enum):
    """Who speaks."""

    USER = 1
    ASSISTANT = 2
    SYSTEM = 3
    OTHER = 4
    """For example a tool, which cannot be learnt from text alone."""


_ROLES = {
    "user": Role.USER, "human": Role.USER, "assistant": Role.ASSISTANT, "gpt": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT, "bot": Role.ASSISTANT, "model": Role.ASSISTANT, "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
}  # fmt: skip


_KEYS = ({"messages", "role", "content"}, {"conversations", "from", "value"})
"""Keys that identify records as conversations."""


class Message(NamedTuple):
    role: Role
    text: str


class Messages(Format):
    gives = "conversations"
    fields = ("messages",)
    optional_fields = ("system",)
    aliases: ClassVar = {"messages": ("conversations",)}
    other_names: ClassVar = {"messages": ("conversation", "chat", "dialogue", "dialog", "turns")}

    examples = (
        {
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
            "system": "Be brief",
        },
        {
            "conversations": [
                {"from": "human", "value": [{"type": "text", "text": "Hi"}]},
                {"from": "gpt", "value": "Hello"},
            ]
        },
    )

    def row(self, source: Source, place: Place, record: dict[str, Any]) -> list[Message]:
        system = text_in(place, "system", record.get("system"))
        return [*([Message(Role.SYSTEM, system)] if system else []), *_messages(place, record["messages"])]

    def looks_like(self, head: Head) -> bool:
        return head.kind == "json" and any(keys <= head.fields for keys in _KEYS)

    def to_conversation(self, content: list[Message], tokenizer: Tokenizer, window: int) -> Outcome:
        if any(message.role is Role.OTHER for message in content):
            return dropped("a turn of another role than user and assistant")
        system: list[str] = []
        turns: list[str] = []
        changed = None
        for role, text in content:
            text = clean_content(text)
            if not text:
                if role is not Role.SYSTEM:
                    return dropped("an empty turn")
            elif role is Role.SYSTEM:
                system.append(text)
            elif role is (Role.ASSISTANT if len(turns) % 2 else Role.USER):
                turns.append(text)
            elif turns:
                turns[-1] += f"\n\n{text}"  # two turns in a row by the same speaker
            else:
                changed = "replies before the first question left out"
        if len(turns) < 2:
            return dropped("no question with a reply")
        split_by = turns[0]
        turns[0] = "\n\n".join([*system, turns[0]])
        return fitting_turns(turns, split_by, tokenizer, window, changed)


def _messages(place: Place, messages: Any) -> list[Message]:
    if isinstance(messages, str):  # tables hold it as text
        with contextlib.suppress(ValueError, RecursionError):
            messages = json.loads(messages, strict=False)
    if is_nothing(messages):
        return []
    if not isinstance(messages, list):
        raise DataError(f"{place}: the field `messages` should be a list of messages and is {shown(messages)}")
    found = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise DataError(f"{place}: message {number} should have `role` and `content` and is {shown(message)}")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise DataError(f"{place}: message {number} has no `role` (or `from`) to say who speaks: {shown(message)}")
        text = message.get("content", message.get("value"))
        found.append(Message(_ROLES.get(role.strip().lower(), Role.OTHER), _text_of(place, number, text)))
    return found


def _text_of(place: Place, number: int, content: Any) -> str:
    """The text of a message. OpenAI's content can be a list of parts, which must all be text."""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError(f"{place}: message {number} holds something other than text: {shown(content)}")
        return "\n\n".join(part["text"] for part in content)
    return text_in(place, f"content of message {number}", content)


FORMAT = Messages()
