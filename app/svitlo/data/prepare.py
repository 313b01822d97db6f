"""Text in, shards out: `svitlo prepare`.

For each phase: complete and unchanged → say so, in well under two seconds; begun → go on; changed → begin anew.
Killed at any moment and started again, it ends with the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitlo.config import DATA_FILE, UNPINNED, DataConfig, PhaseData, load_data_config
from svitlo.data.formats import all_formats
from svitlo.data.journal import Journal
from svitlo.data.report import Reporter
from svitlo.data.tokenizer import tokenizer_sha256
from svitlo.errors import AlreadyRunning, DataError
from svitlo.interruption import Interrupted, Interruption
from svitlo.manifest import SPLITS, DataNotReady, Manifest, load_manifest, verify_shards
from svitlo.phases import PHASES, Phase
from svitlo.storage.files import digest_of, make_folder
from svitlo.storage.locks import exclusive_lock
from svitlo.storage.space import explained
from svitlo.volumes import Volumes

if TYPE_CHECKING:
    from svitlo.data.workers import Workers

RECIPE = 1
"""Raised whenever the same sources and configuration give other tokens, so that old data is made again."""


def prepare(config_dir: Path, volumes: Volumes, interruption: Interruption) -> str:
    """Make sure that both phases' data is prepared. Returns what there is, in one sentence.

    Raises `ConfigError`, `DataError`, `VolumeError`, `AlreadyRunning`, and `Interrupted` after a signal: at once, also
    in the middle of a long download, because every file that was written is whole.
    """
    config = load_data_config(config_dir, all_formats())
    volumes.require_writable("data", "logs", *(["cache"] if _uses_hub(config) else []))
    if any(source.files for phase in PHASES for source in config.of(phase).sources):
        volumes.require("raw")
    reporter = Reporter(volumes.prepare_status)
    with interruption.at_once(), exclusive_lock(volumes.prepare_lock) as is_ours:
        if not is_ours:
            raise AlreadyRunning(f"{volumes.prepare_lock}: another process prepares data on these volumes. Wait for it")
        try:
            with explained(volumes.root / "data", "What is prepared stays, and `svitlo prepare` goes on from here"):
                message = _prepare_phases(config, config_dir, volumes, reporter)
        except Interrupted as interrupted:
            reporter.status("stopped", f"stopped by {interrupted}; the next start goes on from here")
            raise
        reporter.status("complete", message)
    return message


def _uses_hub(config: DataConfig) -> bool:
    return any(source.hub for phase in PHASES for source in config.of(phase).sources)


def _prepare_phases(config: DataConfig, config_dir: Path, volumes: Volumes, reporter: Reporter) -> str:
    manifests = []
    workers: Workers | None = None
    try:
        for phase in PHASES:
            preparation = _Preparation(phase, config.of(phase), volumes, reporter)
            manifest = preparation.complete()
            if manifest is None:
                if workers is None:
                    from svitlo.data.workers import Workers

                    workers = Workers()
                manifest = preparation.make(workers)
                reporter.summary(manifest)
                _warn_about_little_data(manifest, config_dir, reporter)
            manifests.append(manifest)
            reporter.count(sum(map(manifest.num_documents, SPLITS)), sum(map(manifest.num_tokens, SPLITS)))
    finally:
        if workers is not None:
            workers.close()
    parts = [
        f"{manifest.phase}: {manifest.num_tokens('train'):,} training tokens and "
        f"{manifest.num_tokens('validation'):,} for validation"
        for manifest in manifests
    ]
    return f"data is prepared; {'; '.join(parts)}"


def _warn_about_little_data(manifest: Manifest, config_dir: Path, reporter: Reporter) -> None:
    for source in manifest.sources:
        dropped = sum(source["dropped"].values())
        if dropped > source["documents"] > 0:
            reporter.say(
                f"warning: {config_dir / DATA_FILE}: source {source['name']}: more was dropped ({dropped:,}) than kept "
                f"({source['documents']:,})"
            )


class _Preparation:
    """One phase's data: is it complete, and what has to be done where it is not."""

    def __init__(self, phase: Phase, data: PhaseData, volumes: Volumes, reporter: Reporter) -> None:
        self._phase = phase
        self._data = data
        self._volumes = volumes
        self._reporter = reporter
        self._folder = volumes.data(phase)
        self._tokenizer = tokenizer_sha256()
        self._key = digest_of(
            {"configuration": data.model_dump(mode="json"), "tokenizer": self._tokenizer, "recipe": RECIPE}
        )
        make_folder(self._folder)
        self._journal = Journal(self._folder, self._key)

    # --- complete and unchanged? ---

    def complete(self) -> Manifest | None:
        """The manifest, where everything is there and as it was; None where there is something to do."""
        try:
            manifest = load_manifest(self._folder)
        except DataNotReady:
            return None
        except DataError as error:
            self._reporter.say(f"warning: {error}")
            self._begin_anew(f"its manifest is damaged ({error})")
            return None
        if manifest.configuration_digest != self._key:
            self._begin_anew("data.yaml, the tokenizer or the program's way of preparing changed")
            return None
        changed = self._changed_source(manifest)
        if changed:
            self._begin_anew(f"{changed} changed")
            return None
        try:
            verify_shards(self._folder, manifest)
        except DataError as error:
            self._reporter.say(f"warning: {error}")
            return None
        self._reporter.say(
            f"{self._phase}: already prepared and unchanged: {manifest.num_tokens('train'):,} training tokens, "
            f"data identity {manifest.digest[:12]}"
        )
        return manifest

    def _changed_source(self, manifest: Manifest) -> str | None:
        """The first source whose files are others now. Files that were removed after preparation are not missed."""
        from svitlo.data.sources import FileDocuments, KnownDigests, find_files

        digests = KnownDigests(self._journal.known_digests())
        changed = None
        for source, recorded in zip(self._data.sources, manifest.sources, strict=True):
            if source.files is None:
                continue
            try:
                files = find_files(source, self._volumes.raw, lambda _: None)
            except DataError:
                continue
            now = FileDocuments(source, files, digests).identity()["files"]
            before = {file["name"]: file for file in recorded["identity"]["files"]}
            if any(before.get(file["name"]) != file for file in now):
                changed = changed or f"source {source.name} below {self._volumes.raw}"
        self._journal.save_known_digests(digests.known)
        return changed

    # --- making it ---

    def make(self, workers: Workers) -> Manifest:
        """Go on where an earlier start was stopped, mend what is damaged, or begin."""
        from svitlo.data.building import PhaseBuild, ShardChanged, damaged_shards, write_manifest
        from svitlo.data.journal import Progress, SourceCounts
        from svitlo.data.sources import KnownDigests, documents_of

        self._journal.remove_leftovers()
        digests = KnownDigests(self._journal.known_digests())
        commits = self._known_commits()
        documents = [
            documents_of(
                source, self._volumes.raw, self._volumes.cache, digests, self._reporter.say, commits.get(source.name)
            )
            for source in self._data.sources
        ]
        identities = [found.identity() for found in documents]
        build = PhaseBuild(self._phase, self._data, self._folder, documents, self._journal, workers, self._reporter)
        progress = self._journal.load()
        if progress is not None and progress.identities != identities:
            self._begin_anew("the source files changed")
            progress = None
        if progress is not None:
            try:
                damaged = damaged_shards(self._folder, progress.shards)
                self._announce_resumption(progress, len(damaged))
                for split, number, problem in damaged:
                    self._reporter.say(f"warning: {self._phase}: {problem}; making this shard again")
                    build.make_again(progress, split, number)
            except ShardChanged:
                self._begin_anew("a damaged shard did not come out as it was")
                progress = None
        if progress is None:
            if not self._journal.is_empty():
                self._begin_anew("what is there has no usable journal")
            progress = Progress(identities=identities, sources=[SourceCounts() for _ in documents])
        self._journal.save_known_digests(digests.known)
        build.run(progress)
        return write_manifest(self._folder, self._phase, self._data, self._key, self._tokenizer, progress)

    def _known_commits(self) -> dict[str, str]:
        """Commits that unpinned sources were found at when this preparation began."""
        saved = self._journal.saved_identities() or []
        return {
            source.name: str(identity.get("revision"))
            for source, identity in zip(self._data.sources, saved, strict=False)
            if source.revision == UNPINNED and identity.get("revision")
        }

    def _announce_resumption(self, progress: Any, num_damaged: int) -> None:
        num_shards = sum(map(len, progress.shards.values()))
        documents = sum(counts.documents for counts in progress.splits.values())
        self._reporter.say(
            f"{self._phase}: {num_shards - num_damaged} of {num_shards} shards are good"
            + ("" if progress.is_finished else f"; going on after {documents:,} documents")
        )

    def _begin_anew(self, why: str) -> None:
        self._reporter.say(f"{self._phase}: preparing everything anew, because {why}")
        self._journal.clear()
