"""Exact match and F1 on SQuAD questions that training has not seen: whether phase 2 teaches to answer from a text.

    python -m benchmarks.squad v1.1_xquad.en.json.xz --questions 300 \\
        --checkpoints volumes/checkpoints/phase1/best_checkpoint.pt volumes/checkpoints/phase2/best_checkpoint.pt

The measures are those of Rajpurkar et al., "SQuAD", 2016: answers without case, punctuation and articles; exact match
is whether they are equal, F1 the harmonic mean of precision and recall over words. Every question has one right
answer here. Prompts are made as for training, contexts that are too long cut around the answer (which helps both
models alike), and the likeliest token is taken each time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import statistics
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from svitlo.config import Source
from svitlo.data.archives import PackedFile
from svitlo.data.formats import all_formats
from svitlo.data.formats.squad import Question
from svitlo.data.sources import FileDocuments, KnownDigests
from svitlo.data.tokenizer import END_OF_TEXT, Tokenizer
from svitlo.model.weights import model_from
from svitlo.training import numerics
from svitlo.training.checkpoints import load_checkpoint
from svitlo.training.sampling import continuation

WINDOW = 256
MAX_NEW_TOKENS = 30


def questions(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], str]]:
    """The prompt's tokens and the right answer of each question that fits the window."""
    source = Source(name="squad", format="squad", files=[path.name])
    documents = FileDocuments(source, [PackedFile(path, None, path.name)], KnownDigests({}))
    for found in documents.read(0, 0):
        assert isinstance(found.raw.content, Question)
        outcome = all_formats()[source.format].to_conversation(found.raw.content, tokenizer, WINDOW)
        if outcome.dropped is None:
            tokens = np.frombuffer(outcome.tokens, "<u2").tolist()
            prompt = tokens[: outcome.mask.index(1)]
            yield prompt, tokenizer.decode(tokens[len(prompt) :]).removesuffix(END_OF_TEXT)


def words(answer: str) -> list[str]:
    """An answer's words, without case, punctuation and articles."""
    plain = "".join(character for character in answer.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1(answer: str, right: str) -> float:
    """The harmonic mean of precision and recall of the words, 0 to 1."""
    given, wanted = words(answer), words(right)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if given or wanted else 1.0


def main() -> None:
    """A line for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True)
    parser.add_argument("--questions", type=int, default=300)
    options = parser.parse_args()
    numerics.set_threads(len(os.sched_getaffinity(0)))
    tokenizer = Tokenizer()
    every = list(questions(options.file, tokenizer))
    asked = every[:: max(1, len(every) // options.questions)][: options.questions]
    for path in options.checkpoints:
        state = load_checkpoint(path)
        model = model_from(state)
        answers = [tokenizer.decode(continuation(model, prompt, MAX_NEW_TOKENS)).strip() for prompt, _ in asked]
        rights = [right for _, right in asked]
        exact = statistics.mean(words(answer) == words(right) for answer, right in zip(answers, rights, strict=True))
        overlap = statistics.mean(map(f1, answers, rights))
        print(
            f"phase {state.phase}, step {state.global_step:,}: exact match {exact:.1%}, F1 {overlap:.1%} "
            f"({len(asked)} of {len(every):,} questions)"
        )
        for answer, right in itertools.islice(zip(answers, rights, strict=True), 5):
            print(f"    {answer!r:60} right: {right!r}")


if __name__ == "__main__":
    main()
