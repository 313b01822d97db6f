"""The files of a data set on the hub, or of a folder laid out like one.

Which files belong to a configuration and a split is decided by the `datasets` library, from their names and from the
README. It sees a folder with empty files of these names: it asks nobody and reads no data. What it chose is noted
beside the files in `volumes/cache/downloads/`. From then on no network is needed. Code in a repository is never run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from svitlo.config import DATA_FILE, UNPINNED, Source
from svitlo.data.archives import PackedFile
from svitlo.data.hubclient import HubClient, HubFile
from svitlo.data.report import Reporter
from svitlo.errors import DataError
from svitlo.storage.files import make_folder, write_json
from svitlo.storage.space import explained
from svitlo.units import file_size

_DESCRIPTIONS = ("README.md", ".huggingface.yaml")
"""What the library reads to learn about configurations."""
_NOT_SHOWN = ("dataset_infos.json",)
"""What it would read and does not need."""


class HubFiles:
    """The files of one source."""

    def __init__(self, source: Source, cache: Path, reporter: Reporter, commit: str | None = None) -> None:
        """`commit`: the commit of an unpinned revision, found when this preparation began."""
        assert source.hub is not None
        self._source = source
        self._repository = source.hub
        self._folder = cache / "downloads"
        self._reporter = reporter
        self._is_local = Path(source.hub).is_dir()
        self._client = HubClient(source, self._folder, reporter)
        self._commit = commit if source.revision == UNPINNED else source.revision

    @property
    def commit(self) -> str:
        """The commit, asked for if the source is unpinned. Raises `SvitloError`."""
        if self._commit is None:
            self._commit = "local folder" if self._is_local else self._client.describe(None)[0]
            self._reporter.say(
                f"warning: source {self._source.name}: `revision: {UNPINNED}`, so the data may differ on another day. "
                f"Today it is {self._repository} at {self._commit}"
            )
        return self._commit

    def fetch(self) -> list[PackedFile]:
        """The files of the configuration and split, in order. Downloads what is missing. Raises `SvitloError`."""
        self._reporter.say(f"loading hub data set {self._repository} (revision {self.commit[:12]})")
        if self._is_local:
            folder = Path(self._repository)
            names = self._chosen(folder)
            paths = [folder / name for name in names]
        else:
            with explained(self._folder, "What was downloaded so far stays"):
                make_folder(self._folder)
                files = self._noted() or self._resolved()
                names = [file.path for file in files]
                paths = self._client.fetch(files, self.commit)
        return [
            PackedFile(path, None, f"hub data set {self._repository}: {name}", self._reporter.say)
            for name, path in zip(names, paths, strict=True)
        ]

    # --- which files ---

    @property
    def _note(self) -> Path:
        """Where the choice is noted."""
        name = [f"{self._repository}@{self.commit}", self._source.configuration, self._source.split, "json"]
        return self._folder / quote(".".join(filter(None, name)).replace("/", "--"), safe="@")

    def _noted(self) -> list[HubFile]:
        """The files of an earlier load. Empty where there was none, or where the note is damaged."""
        try:
            return [HubFile(*file) for file in json.loads(self._note.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []

    def _resolved(self) -> list[HubFile]:
        """The files, as the hub has them. Notes them."""
        _, files = self._client.describe(self.commit)
        by_path = {file.path: file for file in files if file.path not in _NOT_SHOWN}
        described = [by_path[name] for name in _DESCRIPTIONS if name in by_path]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "files"
            for name in by_path:
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise DataError(f"hub data set {self._repository}: no file may be called {name!r}. Choose another")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            for file, path in zip(described, self._client.fetch(described, self.commit), strict=True):
                (folder / file.path).write_bytes(path.read_bytes())
            chosen = [by_path[name] for name in self._chosen(folder)]
        total = file_size(sum(file.num_bytes for file in chosen))
        self._reporter.say(f"hub data set {self._repository}: {len(chosen)} of its {len(files)} files, {total}")
        write_json(self._note, chosen)
        return chosen

    def _chosen(self, folder: Path) -> list[str]:
        """The names of the configuration's files for the split. Raises `DataError`."""
        where = f"{DATA_FILE}: source {self._source.name}"
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{where}: the package `datasets` is not installed here. Run the data-prep container, which has it, or "
                f"use files (config/offline)"
            ) from None
        with tempfile.TemporaryDirectory() as temporary:
            try:
                arguments = {"name": self._source.configuration, "cache_dir": temporary}
                splits = datasets.load_dataset_builder(str(folder), **arguments).config.data_files
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                reason = " ".join(str(error).replace(f"{folder}/", "").replace(str(folder), self._repository).split())
                raise DataError(
                    f"{where}: `hub: {self._repository}` cannot be loaded ({reason[:400] or type(error).__name__}). "
                    f"Check `hub`, `configuration` and `revision`"
                ) from error
        if self._source.split not in splits:
            raise DataError(
                f"{where}: `split: {self._source.split}`: {self._repository} has no such split. There are: "
                f"{', '.join(map(str, splits))}"
            )
        return [Path(path).relative_to(folder.resolve()).as_posix() for path in splits[self._source.split]]
