"""Alpaca, SQuAD and DailyDialog become conversations that fit the window and never lose part of a reply."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svitlo.data.formats import all_formats
from svitlo.data.formats.alpaca import Instruction
from svitlo.data.formats.squad import NOT_IN_TEXT, Question
from svitlo.data.instructions import Outcome
from svitlo.data.tokenizer import Tokenizer

squad = all_formats()["squad"].to_conversation
dailydialog = all_formats()["dailydialog"].to_conversation


def alpaca(record: dict[str, str], tokenizer: Tokenizer, window: int) -> Outcome:
    return all_formats()["alpaca"].to_conversation(Instruction(**record), tokenizer, window)


CONTEXT = "The old mill stands by the river. It was built in 1847 by Anna Holm, and still grinds rye every autumn."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def question(context: str, answer: str | None, **others: object) -> Question:
    start = context.index(answer) if answer else 0
    fields = {"title": "Mill", "question": " When was it built?  ", "is_impossible": None, **others}
    return Question(context=context, answer=answer, answer_start=start, **fields)  # type: ignore[arg-type]


def text(tokenizer: Tokenizer, outcome: Outcome) -> str:
    return tokenizer.decode(np.frombuffer(outcome.tokens, dtype="<u2").tolist())


def reply(tokenizer: Tokenizer, outcome: Outcome) -> str:
    learned = np.frombuffer(outcome.tokens, dtype="<u2")[np.frombuffer(outcome.mask, dtype=np.uint8) == 1]
    return tokenizer.decode(learned.tolist()).removesuffix("<|endoftext|>")


# --- Alpaca


def test_alpaca_with_and_without_input(tokenizer: Tokenizer) -> None:
    record = {"instruction": "Add the numbers.", "input": "2, 3", "output": "5"}
    assert text(tokenizer, alpaca(record, tokenizer, 64)) == (
        "### User:\nAdd the numbers.\n\n2, 3\n\n### Assistant:\n5<|endoftext|>"
    )
    without = "### User:\nName a colour.\n\n### Assistant:\nBlue<|endoftext|>"
    spellings = ["", "No input", "Noinput", "<no input>", "< noinput >", "<noinput>.", "no input needed", "None", "N/A"]
    for spelling in spellings:
        record = {"instruction": "Name a colour.", "input": spelling, "output": "Blue"}
        assert text(tokenizer, alpaca(record, tokenizer, 64)) == without, spelling


def test_alpaca_input_that_only_resembles_none_is_kept(tokenizer: Tokenizer) -> None:
    record = {"instruction": "Rate this.", "input": "No input device was found.", "output": "Bad"}
    assert "No input device" in text(tokenizer, alpaca(record, tokenizer, 64))


@pytest.mark.parametrize(
    "output", ["", "  ", "<nooutput>", "No output", "nooutput", "<no output> This needs an image."]
)
def test_alpaca_without_output_is_dropped(tokenizer: Tokenizer, output: str) -> None:
    assert alpaca({"instruction": "Do it.", "input": "", "output": output}, tokenizer, 64).dropped


def test_alpaca_that_does_not_fit_is_dropped(tokenizer: Tokenizer) -> None:
    record = {"instruction": "Write.", "input": "", "output": "word " * 60}
    assert alpaca(record, tokenizer, 64).dropped == "longer than 64 tokens"
    assert alpaca(record, tokenizer, 80).dropped is None


def test_alpaca_split_is_by_instruction(tokenizer: Tokenizer) -> None:
    first, second = (
        alpaca({"instruction": written, "input": given, "output": "x"}, tokenizer, 64)
        for written, given in (("Add these.", "1 2"), ("add  these.", "3 4"))
    )
    assert first.split_digest == second.split_digest
    assert first.digest != second.digest


# --- SQuAD


def test_squad_whole(tokenizer: Tokenizer) -> None:
    outcome = squad(question(CONTEXT, "1847"), tokenizer, 128)
    expected = f"### User:\n{CONTEXT}\n\nWhen was it built?\n\n### Assistant:\n1847<|endoftext|>"
    assert text(tokenizer, outcome) == expected
    assert outcome.changed is None


def test_squad_unanswerable(tokenizer: Tokenizer) -> None:
    outcome = squad(question(CONTEXT, None, is_impossible=True), tokenizer, 128)
    assert reply(tokenizer, outcome) == NOT_IN_TEXT


def test_squad_without_answer_and_without_label_is_dropped(tokenizer: Tokenizer) -> None:
    assert squad(question(CONTEXT, None), tokenizer, 128).dropped == "no answer"
    assert squad(question(CONTEXT, None, is_impossible=False), tokenizer, 128).dropped == "no answer"


def test_squad_wrong_answer_start(tokenizer: Tokenizer) -> None:
    entry = question(CONTEXT, "1847")._replace(answer_start=3)
    assert reply(tokenizer, squad(entry, tokenizer, 128)) == "1847"
    entry = question(CONTEXT, "1847")._replace(answer="1900")
    assert squad(entry, tokenizer, 128).dropped == "the answer is not in the text"


def test_squad_same_article_same_split(tokenizer: Tokenizer) -> None:
    one = squad(question(CONTEXT, "1847"), tokenizer, 128)
    other = squad(question("Another paragraph about 1900.", "1900"), tokenizer, 128)
    assert one.split_digest == other.split_digest


words_strategy = st.lists(
    st.sampled_from(["river", "Anna", "(1847–1900),", "naïve", "東京駅", "don't", "x-ray;", "3,000", "é", "grinding"]),
    min_size=1,
    max_size=150,
)


@settings(max_examples=150, deadline=None)
@given(
    words=words_strategy, separators=st.lists(st.sampled_from([" ", "\n", "  ", "\u00a0"]), min_size=1), data=st.data()
)
def test_squad_cut_keeps_the_answer_whole_and_fits(
    tokenizer: Tokenizer, words: list[str], separators: list[str], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(len(words) - 1, first + 5)))
    window = data.draw(st.integers(32, 100))
    context, starts = "", []
    for number, word in enumerate(words):
        starts.append(len(context))
        context += word + separators[number % len(separators)]
    answer = context[starts[first] : starts[last] + len(words[last])]
    entry = Question("T", context, "Which?", answer, starts[first], None)
    outcome = squad(entry, tokenizer, window)
    needed = len(tokenizer.encode(f"### User:\n{answer}\n\nWhich?\n\n### Assistant:\n{answer}")) + 4
    if outcome.dropped:
        assert needed > window
        return
    assert len(outcome.mask) <= window
    plain_answer = " ".join(answer.split())
    assert " ".join(reply(tokenizer, outcome).split()) == plain_answer
    excerpt = text(tokenizer, outcome).removeprefix("### User:\n").split("\n\nWhich?")[0]
    assert plain_answer in " ".join(excerpt.split())
    spaced, kept = f" {' '.join(context.split())} ", f" {' '.join(excerpt.split())} "
    assert kept in spaced, "cut elsewhere than between words"


def test_squad_cut_uses_the_window(tokenizer: Tokenizer) -> None:
    long = "Before it all. " * 60 + "The mill was built in 1847. " + "After that. " * 60
    outcome = squad(question(long, "1847"), tokenizer, 128)
    assert outcome.changed == "context cut around the answer"
    assert 120 <= len(outcome.mask) <= 128
    assert "built in 1847. After" in text(tokenizer, outcome)


# --- DailyDialog


def test_dialogue(tokenizer: Tokenizer) -> None:
    outcome = dailydialog(["Is it late ?", "It ’ s ten .", "Oh .", "Yes ."], tokenizer, 64)
    assert text(tokenizer, outcome) == (
        "### User:\nIs it late?\n\n### Assistant:\nIt's ten.<|endoftext|>\n\n"
        "### User:\nOh.\n\n### Assistant:\nYes.<|endoftext|>"
    )
    assert outcome.changed is None


def test_dialogue_last_turn_without_reply_is_left_out(tokenizer: Tokenizer) -> None:
    outcome = dailydialog(["Hello .", "Hi .", "Bye ."], tokenizer, 64)
    assert text(tokenizer, outcome).endswith("Hi.<|endoftext|>")
    assert outcome.changed == "last turn without a reply left out"


def test_dialogue_that_is_too_long_keeps_its_beginning(tokenizer: Tokenizer) -> None:
    turns = [f"Turn number {number} of the long talk ." for number in range(20)]
    outcome = dailydialog(turns, tokenizer, 64)
    shown = text(tokenizer, outcome)
    assert outcome.changed == "later turns left out"
    assert len(outcome.mask) <= 64
    kept = shown.count("Turn number")
    assert kept % 2 == 0
    assert all(f"Turn number {number} of the long talk." in shown for number in range(kept))
    assert shown.endswith("<|endoftext|>")


def test_dialogue_split_is_by_the_whole_dialogue(tokenizer: Tokenizer) -> None:
    turns = [f"Turn number {number} of the long talk ." for number in range(20)]
    one, other = dailydialog(turns, tokenizer, 64), dailydialog([*turns[:-1], "Another end ."], tokenizer, 64)
    assert one.digest == other.digest  # so that the second is dropped, whichever split it would be in
    assert one.split_digest != other.split_digest


def test_dialogue_too_short_or_too_long(tokenizer: Tokenizer) -> None:
    assert dailydialog(["Only me ."], tokenizer, 64).dropped == "fewer than two utterances"
    assert dailydialog(["word " * 70, "Yes ."], tokenizer, 64).dropped == "longer than 64 tokens"
