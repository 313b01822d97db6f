"""DailyDialog: dialogues of two people who take turns. The second one becomes the assistant.

The release has one dialogue on each line, with `__eou__` after each utterance. Rows have a list of utterances.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

from svitlo.config import Source
from svitlo.data.dialogue import detokenize
from svitlo.data.formats import Format
from svitlo.data.head import Head
from svitlo.data.instructions import Outcome, dropped, fitting_turns
from svitlo.data.lines import lines_of
from svitlo.data.records import Place, is_nothing
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import DataError
from svitlo.units import shown

_END_OF_UTTERANCE = "__eou__"


class DailyDialog(Format):
    gives = "conversations"
    fields = ("dialog",)
    other_names: ClassVar = {"dialog": ("dialogue", "utterances", "turns")}

    examples = ({"dialog": ["Hello", "Hi"]}, {"dialog": "Hello __eou__ Hi __eou__"})

    def read(self, source: Source, head: Head, stream: io.BufferedReader) -> Iterator[list[str]]:
        if head.kind is not None:
            yield from super().read(source, head, stream)
            return
        for number, line in lines_of(head.name, stream):
            if not line.strip():
                continue
            if _END_OF_UTTERANCE not in line:
                raise DataError(
                    f"{head.name}: line {number} has no `{_END_OF_UTTERANCE}` between its utterances: "
                    f"{line[:80].strip()!r}. Is the format dailydialog right for this file?"
                )
            yield _utterances(line)

    def row(self, source: Source, place: Place, record: dict[str, Any]) -> list[str]:
        dialog = record["dialog"]
        if isinstance(dialog, str) and _END_OF_UTTERANCE in dialog:
            return _utterances(dialog)
        if is_nothing(dialog):
            return []
        if not isinstance(dialog, list) or not all(isinstance(utterance, str) for utterance in dialog):
            kind = "text" if isinstance(dialog, str) else type(dialog).__name__
            raise DataError(
                f"{place}: the field `dialog` should be a list of utterances, or text with `{_END_OF_UTTERANCE}` "
                f"between them, and is {kind}: {shown(dialog)}"
            )
        return [utterance.strip() for utterance in dialog if utterance.strip()]

    def looks_like(self, head: Head) -> bool:
        return (head.kind is None and f" {_END_OF_UTTERANCE}" in head.start[:4_096]) or super().looks_like(head)

    def to_conversation(self, content: list[str], tokenizer: Tokenizer, window: int) -> Outcome:
        utterances = [detokenize(utterance) for utterance in content]
        if len(utterances) < 2 or not all(utterances):
            return dropped("fewer than two utterances")
        return fitting_turns(utterances, "\n\n".join(utterances), tokenizer, window)


def _utterances(text: str) -> list[str]:
    return [utterance for utterance in map(str.strip, text.split(_END_OF_UTTERANCE)) if utterance]


FORMAT = DailyDialog()
