"""Alpaca's records: an instruction, sometimes an input, and the output as reply.

Trainers have since added two fields: `history`, a list of earlier [question, answer] pairs, and `system`, which goes
before the first turn.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from svitlo.config import Source
from svitlo.data.cleaning import clean_content
from svitlo.data.formats import Format
from svitlo.data.instructions import Outcome, dropped, fitting_turns
from svitlo.data.records import Place, is_nothing, text_in
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError
from svitlo.units import shown

_WORDS = re.compile(r"\w+")
_NO_INPUT = re.compile(r"(?:no|none?|not)?\W*(?:input|applicable)(?: (?:needed|required|provided|given))?", re.I)
_MOST_WORDS = 3
_NO_INPUT_WORDS = {"", "none", "n/a", "na", "nan", "null", "<>", "-"}
_NO_OUTPUT = re.compile(r"\W*no[\s_-]*output\b.{0,60}", re.IGNORECASE | re.DOTALL)


class Instruction(NamedTuple):
    """A record, unchanged."""

    instruction: str
    input: str
    output: str
    system: str = ""
    history: tuple[str, ...] = ()
    """Earlier turns: question, answer, question, ..."""


class Alpaca(Format):
    gives = "conversations"
    fields = ("instruction", "output")
    optional_fields = ("input", "system", "history")
    other_names: ClassVar = {
        "instruction": ("prompt", "question", "query", "instructions", "user", "human"),
        "output": ("response", "answer", "completion", "reply", "target", "assistant"),
        "input": ("context", "inputs"),
        "system": ("system_prompt",),
    }

    examples = (
        {"instruction": "Say it", "input": "", "output": "It is", "system": "Be brief", "history": [["Hi", "Hello"]]},
    )

    def row(self, source: Source, place: Place, record: dict[str, Any]) -> Instruction:
        instruction, given, output, system = (
            text_in(place, field, record.get(field)) for field in ("instruction", "input", "output", "system")
        )
        return Instruction(instruction, given, output, system, _earlier_turns(place, record.get("history")))

    def to_conversation(self, content: Instruction, tokenizer: Tokenizer, window: int) -> Outcome:
        instruction, given, output = map(clean_content, content[:3])
        if not instruction:
            return dropped("no instruction")
        if not output:
            return dropped("no output")
        if _NO_OUTPUT.fullmatch(output):
            return dropped("output says that there is none")
        if _says_nothing(given):
            given = ""
        turns = [clean_content(turn) for turn in content.history]
        if not all(turns):
            return dropped("an empty turn")
        turns += [f"{instruction}\n\n{given}" if given else instruction, output]
        if system := clean_content(content.system):
            turns[0] = f"{system}\n\n{turns[0]}"
        return fitting_turns(turns, instruction, tokenizer, window)


def _says_nothing(given: str) -> bool:
    """Whether an input says that there is none. Ignores everything around its words."""
    if given.lower() in _NO_INPUT_WORDS:
        return True
    words = list(islice(_WORDS.finditer(given), _MOST_WORDS + 1))
    if not 0 < len(words) <= _MOST_WORDS:
        return False
    return _NO_INPUT.fullmatch(given, words[0].start(), words[-1].end()) is not None


def _earlier_turns(place: Place, history: Any) -> tuple[str, ...]:
    if is_nothing(history) or history == "":
        return ()
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f"{place}: the field `history` should be a list of [question, answer] and is {shown(history)}")
    return tuple(text_in(place, "history", turn) for pair in history for turn in pair)


FORMAT = Alpaca()
