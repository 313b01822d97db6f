"""One phase's data: is it complete, and what has to be done where it is not.

Nothing is removed before its replacement stands. Where the data must change, the new data is prepared in a folder
beside the present one. When its manifest is written, the two change places in one step.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.config import UNPINNED, PhaseData
from svitlo.data.journal import Journal, Progress, SourceCounts, remove_prepared
from svitlo.data.plan import preparation_key
from svitlo.data.report import Reporter
from svitlo.data.tokenizer import tokenizer_sha256
from svitlo.errors import DataError
from svitlo.manifest import MANIFEST, DataNotReady, Manifest, load_manifest, verify_shards
from svitlo.phases import Phase
from svitlo.storage.files import make_folder, rename_durably, replace_folder, replaced_name
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.data.sources import Documents
    from svitlo.data.workers import Workers


class Preparation:
    """The preparation of one phase."""

    def __init__(self, phase: Phase, data: PhaseData, volumes: Volumes, reporter: Reporter) -> None:
        self._phase = phase
        self._data = data
        self._volumes = volumes
        self._reporter = reporter
        self._folder = volumes.data(phase)
        self._beside = volumes.next_data(phase)
        self._tokenizer = tokenizer_sha256()
        self._key = preparation_key(data, self._tokenizer)
        self._why = ""
        # Where a file system cannot exchange two names, a power cut can fall between two renames.
        if not self._folder.exists() and (self._beside / MANIFEST).is_file():
            rename_durably(self._beside, self._folder)

    # --- complete and unchanged? ---

    def complete(self) -> Manifest | None:
        """The manifest, where everything is there and unchanged; None where there is something to do."""
        try:
            manifest = load_manifest(self._folder)
        except DataNotReady:
            return None
        except DataError as error:
            self._reporter.say(f"warning: {error}")
            return None
        if manifest.configuration_digest != self._key:
            self._why = "data.yaml, the tokenizer or the program's way of preparing changed"
            return None
        changed = self._changed_source(manifest)
        if changed:
            self._why = f"{changed} changed"
            return None
        try:
            verify_shards(self._folder, manifest)
        except DataError as error:
            self._reporter.say(f"warning: {error}")
            return None
        self._remove_beside()
        self._reporter.say(
            f"{self._phase}: already prepared and unchanged: {manifest.num_tokens('train'):,} training tokens, "
            f"data identity {manifest.digest[:12]}"
        )
        return manifest

    def _changed_source(self, manifest: Manifest) -> str | None:
        """The first source whose files are others now. Files that were removed after preparation are not missed."""
        from svitlo.data.rawfiles import find_files
        from svitlo.data.sources import FileDocuments, KnownDigests

        journal = Journal(self._folder, self._key)
        digests = KnownDigests(journal.known_digests())
        changed = None
        for source, recorded in zip(self._data.sources, manifest.sources, strict=True):
            if source.files is None:
                continue
            try:
                files = find_files(source, self._volumes.raw, lambda _: None).files
            except DataError:
                continue
            now = FileDocuments(source, files, digests).identity()["files"]
            before = {tuple(sorted(file.items())) for file in recorded["identity"]["files"]}
            if any(tuple(sorted(file.items())) not in before for file in now):
                changed = changed or f"source {source.name} below {self._volumes.raw}"
        journal.save_known_digests(digests.known)
        return changed

    # --- making it ---

    def make(self, workers: Workers) -> Manifest:
        """Go on where an earlier start was stopped, repair what is damaged, or begin.

        Raises `DataError` where a source cannot be found or opened, before anything is changed.
        """
        from svitlo.data.building import ShardChanged
        from svitlo.data.sources import KnownDigests, documents_of

        present = Journal(self._folder, self._key)
        digests = KnownDigests(present.known_digests())
        commits = self._known_commits()
        documents = [
            documents_of(source, self._volumes, digests, self._reporter, commits.get(source.name))
            for source in self._data.sources
        ]
        identities = [found.identity() for found in documents]

        make_folder(self._folder)  # not before: a mistake in data.yaml writes nothing
        present.remove_leftovers()
        progress = _progress_of(present, identities)
        if not self._why:
            has_journal = present.saved_identities() is not None
            self._why = "the source files changed" if has_journal else "the present data has no usable journal"
        if progress is not None or present.is_empty():
            try:
                manifest = self._make_in(self._folder, present, progress, documents, identities, workers, digests.known)
            except ShardChanged:
                self._why = "a damaged shard did not come out as it was"
            else:
                self._remove_beside()
                return manifest
        return self._replace(documents, identities, workers, digests.known)

    def _replace(
        self,
        documents: list[Documents],
        identities: list[dict[str, Any]],
        workers: Workers,
        digests: dict[str, list[Any]],
    ) -> Manifest:
        """Prepare everything beside the present data, and then in its place."""
        from svitlo.data.building import ShardChanged

        self._reporter.say(
            f"{self._phase}: preparing everything again, because {self._why}. The present data stays until that is "
            f"complete"
        )
        make_folder(self._beside)
        journal = Journal(self._beside, self._key)
        journal.remove_leftovers()
        progress = _progress_of(journal, identities)
        while True:
            if progress is None:
                remove_prepared(self._beside)
                journal = Journal(self._beside, self._key)
            try:
                self._make_in(self._beside, journal, progress, documents, identities, workers, digests)
                break
            except ShardChanged:
                progress = None
        replace_folder(self._beside, self._folder)
        self._remove_beside()
        return load_manifest(self._folder)

    def _make_in(
        self,
        folder: Path,
        journal: Journal,
        progress: Progress | None,
        documents: list[Documents],
        identities: list[dict[str, Any]],
        workers: Workers,
        digests: dict[str, list[Any]],
    ) -> Manifest:
        """From `progress` to the manifest. Raises `ShardChanged` where a damaged shard comes out differently."""
        from svitlo.data.building import PhaseBuild, damaged_shards, write_manifest
        from svitlo.data.division import DividedBadly, explained

        build = PhaseBuild(self._phase, self._data, folder, documents, journal, workers, self._reporter)
        if progress is None:
            progress = _begin(documents, identities)
        else:
            damaged = damaged_shards(folder, progress.shards)
            self._announce_resumption(progress, len(damaged))
            for split, number, problem in damaged:
                self._reporter.say(f"warning: {self._phase}: {problem}; making this shard again")
                build.make_again(progress, split, number)
        journal.save_known_digests(digests)
        try:
            build.run(progress)
        except DividedBadly as found:
            self._reporter.say(f"{self._phase}: preparing once more: {explained(found.division.summary())}")
            remove_prepared(folder)
            journal = Journal(folder, self._key)
            journal.save_known_digests(digests)
            progress = _begin(documents, identities)
            progress.division = found.division
            PhaseBuild(self._phase, self._data, folder, documents, journal, workers, self._reporter).run(progress)
        return write_manifest(folder, self._phase, self._data, self._key, self._tokenizer, progress)

    def _remove_beside(self) -> None:
        """Remove what was prepared beside the present data. What somebody else has put there moves back."""
        for folder in (self._beside, replaced_name(self._folder)):
            if not folder.is_dir():
                continue
            remove_prepared(folder)
            for path in sorted(folder.iterdir()):
                if not os.path.lexists(self._folder / path.name):
                    rename_durably(path, self._folder / path.name)
            with contextlib.suppress(OSError):  # not empty: a name stands in both
                folder.rmdir()

    def _known_commits(self) -> dict[str, str]:
        """Commits that unpinned sources were found at when this preparation began."""
        journals = (Journal(folder, self._key) for folder in (self._beside, self._folder))
        saved = next((found for journal in journals if (found := journal.saved_identities()) is not None), [])
        return {
            source.name: str(identity.get("revision"))
            for source, identity in zip(self._data.sources, saved, strict=False)
            if source.revision == UNPINNED and identity.get("revision")
        }

    def _announce_resumption(self, progress: Progress, num_damaged: int) -> None:
        num_shards = sum(map(len, progress.shards.values()))
        documents = sum(counts.documents for counts in progress.splits.values())
        self._reporter.say(
            f"{self._phase}: {num_shards - num_damaged} of {num_shards} shards are good"
            + ("" if progress.is_finished else f"; going on after {documents:,} documents")
        )


def _begin(documents: list[Documents], identities: list[dict[str, Any]]) -> Progress:
    return Progress(
        identities=identities,
        sources=[SourceCounts() for _ in documents],
        left_out=[list(found.left_out) for found in documents],
        had_markup=[0] * len(documents),
    )


def _progress_of(journal: Journal, identities: list[dict[str, Any]]) -> Progress | None:
    """How far a preparation from these sources has come; None where there is none that can go on."""
    progress = journal.load()
    return progress if progress is not None and progress.identities == identities else None
