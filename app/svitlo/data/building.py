"""One phase's shards from its sources: the work itself.

Documents come one after the other in a fixed order; what becomes of each depends only on the document, the
configuration and the documents kept before it. So a preparation can go on at any document, and a shard can be made
again alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from svitlo.config import PhaseData, Source
from svitlo.data.digestset import DigestSet
from svitlo.data.division import DividedBadly, Division, better_division, count_group
from svitlo.data.instructions import Outcome
from svitlo.data.journal import Journal, Progress
from svitlo.data.plan import plan_for
from svitlo.data.report import Reporter
from svitlo.data.sanity import FEWEST_WORDS
from svitlo.data.sources import Documents
from svitlo.data.tokenizer import NAME, VOCAB_SIZE
from svitlo.data.workers import Workers
from svitlo.data.writing import SplitWriter
from svitlo.errors import DataError
from svitlo.manifest import FORMAT, MANIFEST, SPLITS, Manifest, ShardFile, file_problem, load_manifest
from svitlo.phases import Phase
from svitlo.storage.files import digest_of, write_json

FEWEST_TO_DIVIDE = 20
"""With fewer documents it is chance whether another fraction helps."""

Place = tuple[int, int, int]
"""Source, unit and number of a document."""


class ShardChanged(Exception):  # noqa: N818 — caught inside this package
    """A shard that was made again is not the one that was lost: the sources are not what they were."""


class PhaseBuild:
    """Makes one phase's shards."""

    def __init__(
        self,
        phase: Phase,
        data: PhaseData,
        folder: Path,
        documents: list[Documents],
        journal: Journal,
        workers: Workers,
        reporter: Reporter,
    ) -> None:
        self._phase = phase
        self._data = data
        self._folder = folder
        self._documents = documents
        self._journal = journal
        self._workers = workers
        self._reporter = reporter
        self._plan = plan_for(phase, data)

    # --- all shards ---

    def run(self, progress: Progress) -> None:
        """Go on from `progress` to the last shard. Raises `DataError` where the corpus is not usable."""
        if progress.is_finished:
            return
        self._divide(progress)
        digests = DigestSet(self._journal.digests(progress))
        writers = {
            split: self._plan.writer(
                self._folder,
                split,
                self._plan.shard_size,
                progress.shards[split],
                progress.pending[split],
                progress.begins[split],
            )
            for split in SPLITS
        }
        self._reporter.begin(self._phase, _documents(progress), _tokens(progress), self._fraction(progress, 0))
        try:
            self._add_all(progress, writers, digests)
        finally:
            self._reporter.end()
        for writer in writers.values():
            writer.finish()
        self._check_division(progress)
        progress.is_finished = True
        self._check_totals(progress)
        for source, num_documents in zip(self._data.sources, progress.had_markup, strict=False):
            if num_documents:
                self._reporter.say(f"{self._phase}, {source.name}: markup removed from {num_documents:,} documents")
        self._journal.save(progress, writers, digests)

    def _add_all(self, progress: Progress, writers: dict[str, SplitWriter], digests: DigestSet) -> None:
        full: set[int] = set()
        train_tokens = progress.splits["train"].tokens
        for number, source in enumerate(self._data.sources):
            if source.max_documents is not None and progress.sources[number].documents >= source.max_documents:
                full.add(number)
        outcomes = self._workers.outcomes(self._plan.task, self._stream(progress.position, full))
        num_complete = len(self._documents)
        for count, (place, outcome) in enumerate(outcomes):
            if place[0] in full:
                continue
            split = self._plan.task.split_of(outcome)
            num_tokens = len(outcome.tokens) // 2
            is_train = outcome.dropped is None and split == "train"
            if self._plan.max_tokens is not None and is_train and train_tokens + num_tokens > self._plan.max_tokens:
                self._reporter.say(
                    f"{self._phase}: stopped at `max_tokens` ({self._plan.max_tokens:,}) in source "
                    f"{self._data.sources[place[0]].name}; what follows is not read"
                )
                num_complete = place[0]
                break
            has_written = self._add(progress, writers[split], digests, place, outcome)
            train_tokens = progress.splits["train"].tokens
            source = self._data.sources[place[0]]
            if source.max_documents is not None and progress.sources[place[0]].documents >= source.max_documents:
                full.add(place[0])
            progress.position = (place[0], place[1], place[2] + 1)
            if has_written:
                self._note_members(progress, set(range(place[0])) - full)
                self._journal.save(progress, writers, digests)
            if count % 64 == 0 or has_written:
                self._reporter.advance(_documents(progress), _tokens(progress), self._fraction(progress, place[0]))

        self._note_members(progress, set(range(num_complete)) - full)

    def _note_members(self, progress: Progress, complete: set[int]) -> None:
        """Note which members of archives were left out, of sources that were read to their end: of others it is chance
        how far they were read ahead."""
        for number, (left_out, documents) in enumerate(zip(progress.left_out, self._documents, strict=False)):
            if number in complete:
                left_out += [name for name in documents.members_left_out if name not in left_out]

    def _add(self, progress: Progress, writer: SplitWriter, digests: DigestSet, place: Place, outcome: Outcome) -> bool:
        """Count the document and, where it is used, write it. Returns whether a shard was filled."""
        counts = progress.sources[place[0]]
        kept = len(digests)
        reason = outcome.dropped
        if reason is None and not digests.add(outcome.digest):
            reason = "repeated"
        if reason is not None:
            counts.dropped[reason] = counts.dropped.get(reason, 0) + 1
            return False
        if outcome.changed is not None:
            counts.changed[outcome.changed] = counts.changed.get(outcome.changed, 0) + 1
        if outcome.had_markup and progress.had_markup:  # there is no count where an older version has begun
            progress.had_markup[place[0]] += 1
        split = progress.splits[self._plan.task.split_of(outcome)]
        num_tokens = len(outcome.tokens) // 2
        for part in (counts, split):
            part.documents += 1
            part.words += outcome.words
            part.tokens += num_tokens
        split.reply_tokens += outcome.mask.count(1)
        if outcome.split_digest != outcome.digest:
            count_group(progress.groups, outcome.split_digest)
        begin = {"source": place[0], "unit": place[1], "number": place[2], "kept": kept, "offset": 0}
        return writer.add(outcome.tokens, outcome.mask, begin)

    def _stream(self, start: Place, full: set[int]) -> Iterator[tuple[Place, Any]]:
        """The raw documents from `start` on, each with its place; sources that are `full` are left early."""
        for number in range(start[0], len(self._documents)):
            unit, document = (start[1], start[2]) if number == start[0] else (0, 0)
            if number in full:
                continue
            for found in self._documents[number].read(unit, document):
                yield (number, found.unit, found.number), found.raw
                if number in full:
                    break

    def _fraction(self, progress: Progress, source: int) -> float:
        sources = len(self._documents)
        fraction = (source + self._documents[source].fraction_read) / sources if sources else 1.0
        if self._plan.max_tokens is not None:
            fraction = max(fraction, progress.splits["train"].tokens / self._plan.max_tokens)
        return fraction

    # --- training and validation ---

    def _divide(self, progress: Progress) -> None:
        division = progress.division or Division()
        self._plan = replace(self._plan, task=replace(self._plan.task, by_record=division.by_record))
        for documents in self._documents:
            documents.cut_at(division.longest_document)

    def _check_division(self, progress: Progress) -> None:
        """Raises `DividedBadly` if the share that is held back is wrong, and another division may help."""
        if progress.division is None:
            documents = {split: progress.splits[split].documents for split in SPLITS}
            better = better_division(
                documents,
                _tokens(progress),
                progress.groups,
                self._data.validation_fraction,
                is_text=not self._phase.is_chat,
            )
            if better is not None:
                raise DividedBadly(better)

    # --- checks of the whole ---

    def _check_totals(self, progress: Progress) -> None:
        for source, counts, documents in zip(self._data.sources, progress.sources, self._documents, strict=True):
            if counts.documents == 0 and counts.dropped:
                raise DataError(
                    f"source {source.name} ({_origin(source, documents)}): nothing usable; dropped: "
                    f"{_reasons(counts.dropped)}. Is the format {source.format} right for it?"
                )
        total = sum(counts.words for counts in progress.splits.values())
        used = _documents(progress)
        if total < FEWEST_WORDS:
            dropped: dict[str, int] = {}
            for counts in progress.sources:
                for reason, number in counts.dropped.items():
                    dropped[reason] = dropped.get(reason, 0) + number
            origins = "; ".join(map(_origin, self._data.sources, self._documents))
            raise DataError(
                f"{self._phase}: almost empty: {used:,} documents with {total:,} words in all, at least "
                f"{FEWEST_WORDS} are needed ({origins}; dropped: {_reasons(dropped)})"
            )
        for split in SPLITS:
            if progress.splits[split].documents == 0:
                size = "larger" if split == "validation" else "smaller"
                remedy = f"Choose a {size} fraction or give" if used >= FEWEST_TO_DIVIDE else "Give"
                raise DataError(
                    f"data.yaml: {self._phase.name}.validation_fraction = {self._data.validation_fraction:g}: none of "
                    f"the {used:,} {self._phase.unit} falls into {split}. {remedy} more text"
                )

    # --- one shard ---

    def make_again(self, progress: Progress, split: str, number: int) -> None:
        """Make one damaged shard again. Raises `ShardChanged` where it does not come out as it was."""
        self._divide(progress)
        shard = progress.shards[split][number]
        begin = shard["begin"]
        digests = DigestSet(self._journal.digests(progress, begin["kept"]))
        made: list[dict[str, Any]] = [{"tokens": 0}] * number  # only their count matters: it numbers the file
        writer = self._plan.writer(self._folder, split, shard[self._plan.writer.size_key], made)
        task = replace(self._plan.task, only_split=split)
        stream = self._stream((begin["source"], begin["unit"], begin["number"]), set())
        skip = begin["offset"]
        for place, outcome in self._workers.outcomes(task, stream):
            if (
                outcome.dropped is not None
                or not digests.add(outcome.digest)
                or self._plan.task.split_of(outcome) != split
            ):
                continue
            place_begin = {**begin, "source": place[0], "unit": place[1], "number": place[2]}
            if writer.add(outcome.tokens[2 * skip :], outcome.mask, place_begin):
                break
            skip = 0
        if len(made) == number:
            raise ShardChanged
        if made[number]["files"] != shard["files"]:
            raise ShardChanged


def damaged_shards(folder: Path, shards: dict[str, list[dict[str, Any]]]) -> list[tuple[str, int, str]]:
    """Split, number and problem of each shard that is not on disk as it was written."""
    damaged = []
    for split in SPLITS:
        for number, shard in enumerate(shards[split]):
            for file in shard["files"]:
                problem = file_problem(folder, ShardFile(file["name"], file["sha256"], file["bytes"]))
                if problem:
                    damaged.append((split, number, f"{file['name']} {problem}"))
                    break
    return damaged


def write_manifest(
    folder: Path, phase: Phase, data: PhaseData, key: str, tokenizer_sha256: str, progress: Progress
) -> Manifest:
    """The last file of a phase: from now on its data is ready."""
    splits: dict[str, Any] = {}
    if progress.division is not None:
        splits["division"] = progress.division.summary()
    for split in SPLITS:
        counts = vars(progress.splits[split]).copy()
        if not phase.is_chat:
            del counts["reply_tokens"]
        shards = [{name: value for name, value in shard.items() if name != "begin"} for shard in progress.shards[split]]
        splits[split] = {**counts, "shards": shards}
    content: dict[str, Any] = {
        "format": FORMAT,
        "phase": phase.number,
        "configuration": data.model_dump(mode="json"),
        "configuration_digest": key,
        "tokenizer": {"name": NAME, "sha256": tokenizer_sha256, "vocab_size": VOCAB_SIZE},
        "sources": [
            {"name": source.name, "identity": identity, **vars(counts)}
            for source, identity, counts in zip(data.sources, progress.identities, progress.sources, strict=True)
        ],
        "splits": splits,
    }
    for entry, left_out in zip(content["sources"], progress.left_out, strict=False):
        if left_out:
            entry["left_out"] = left_out
    write_json(folder / MANIFEST, {**content, "digest": digest_of(content)})
    return load_manifest(folder)


def _origin(source: Source, documents: Documents) -> str:
    if source.hub is not None:
        return f"hub data set {source.hub}"
    return ", ".join(file["name"] for file in documents.identity()["files"])


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items())) or "nothing"


def _documents(progress: Progress) -> int:
    return sum(counts.documents for counts in progress.splits.values())


def _tokens(progress: Progress) -> int:
    return sum(counts.tokens for counts in progress.splits.values())
