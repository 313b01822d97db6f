"""`data.yaml`: what the two phases learn from."""

from __future__ import annotations

import codecs
import difflib
import encodings.aliases
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from svitlo.config.reading import Count, Section, load
from svitlo.phases import Phase

DATA_FILE = "data.yaml"
UNPINNED = "unpinned"


class FormatKind(Protocol):
    """What the sources in data.yaml are checked against. The formats themselves live in a higher layer."""

    @property
    def gives(self) -> Literal["text", "conversations"]: ...

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def optional_fields(self) -> tuple[str, ...]: ...

    @property
    def source_keys(self) -> tuple[str, ...]: ...


def _formats_of(info: ValidationInfo) -> Mapping[str, FormatKind]:
    """All known formats, or none if the program itself creates the object."""
    return info.context["formats"] if info.context else {}


class Source(Section):
    """One place that text comes from: a data set on the hub, or files below `volumes/raw/`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)
    """The name of the source in the manifest and in reports."""
    format: str
    """How documents or conversations are laid out: the name of a module in data/formats/."""
    hub: str | None = None
    """Repository of a data set on the hub, `owner/name`."""
    configuration: str | None = None
    """The data set's configuration (the hub's "subset")."""
    revision: str | None = None
    """Commit on the hub, 40 hex digits: the same configuration then always means the same data. `unpinned` takes what
    the hub has on the day of the first preparation, and records the commit in the manifest."""
    split: str = "train"
    """The data set's split."""
    files: list[str] | None = None
    """Glob patterns below `volumes/raw/`. `archive.zip::member-pattern` reads members of `.zip` and `.tar.*`."""
    field: str = "text"
    """For `jsonl` and hub text: the field that holds the document."""
    title_field: str | None = None
    """For `jsonl` and hub text: the field that holds the title, which becomes the document's first line."""
    check_language: bool = True
    """Stop if the text does not look like English. Set `false` for other languages."""
    max_documents: Count | None = None
    """Stop after this many documents of this source."""
    fields: dict[str, str] | None = Field(default=None, min_length=1, exclude_if=lambda value: value is None)
    """For records whose field names differ from the format's: `{instruction: prompt, output: response}`. If not set, it
    is left out of what is recorded, so that data prepared before this key existed stays valid."""

    longest_document: int | None = Field(default=None, ge=100, le=2**31, exclude_if=lambda value: value is None)
    """For `text` in files: longer documents are cut at ends of sentences. In characters. Not recorded if not set."""
    markup: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    """For text: `true` removes all that looks like markup, `false` nothing. If not set, tags are removed where they are
    tags, and indented text without a title (code) stays as it is. Not recorded if not set."""
    documents: Literal["lines"] | None = Field(default=None, exclude_if=lambda value: value is None)
    """For `text` in files: `lines` if each line is a document. Not recorded if not set."""
    encoding: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """What the files are written in, if not UTF-8: `cp1251`, `utf-16` ... (Python's names). Not recorded if not set."""

    @field_validator("longest_document", "documents", "markup")
    @classmethod
    def _format_knows_the_key(cls, value: Any, info: ValidationInfo) -> Any:
        formats = _formats_of(info)
        found = formats.get(info.data.get("format", ""))
        if value is not None and found is not None and info.field_name not in found.source_keys:
            known = ", ".join(name for name, kind in formats.items() if info.field_name in kind.source_keys)
            raise ValueError(f"format {info.data['format']} does not use it, only {known}")
        return value

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            "".encode(name)  # refuses what is no encoding of text, such as rot13
            if codecs.lookup(name).name in ("idna", "punycode", "unicode_escape", "raw_unicode_escape"):
                raise UnicodeError
        except LookupError:
            known = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values()})
            near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else "for example `cp1251`, `latin-1`, `utf-16`"
            raise ValueError(f"no such encoding; {hint}") from None
        except UnicodeError:
            raise ValueError("this encoding is not for files; for example `cp1251`, `latin-1`, `utf-16`") from None
        return name

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str, info: ValidationInfo) -> str:
        formats = _formats_of(info)
        if formats and name not in formats:
            near = difflib.get_close_matches(name, formats, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"no such format; {hint}There are: {', '.join(formats)}")
        return name

    @field_validator("fields")
    @classmethod
    def _fields_are_the_formats(cls, names: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        found = _formats_of(info).get(info.data.get("format", ""))
        if names is None or found is None:
            return names
        if not found.fields:
            raise ValueError(
                f"format {info.data['format']} has no fields to map: name the record's fields with `field` and "
                f"`title_field`"
            )
        known = [*found.fields, *found.optional_fields]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known)}"
                raise ValueError(f"format {info.data['format']} has no field `{name[:60]}`; {hint}")
        return names

    @model_validator(mode="after")
    def _has_one_origin(self) -> Source:
        if (self.hub is None) == (self.files is None):
            raise ValueError("give either `hub` or `files`: a source has exactly one origin")
        if self.hub is not None and self.revision is None:
            raise ValueError("`revision` is missing: pin the data set to a commit, or runs cannot be repeated")
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}|" + UNPINNED, self.revision):
            raise ValueError(
                f"`revision` ({self.revision[:60]}) is not a commit: give its 40 hex digits, because branches and tags "
                f"move (or `{UNPINNED}`, to take the current one)"
            )
        if self.hub is not None and self.encoding is not None:
            raise ValueError("`encoding` is for files: what comes from the hub has none to choose")
        if self.files is not None and not self.files:
            raise ValueError("`files` is empty: give at least one pattern below volumes/raw/")
        return self


class PhaseData(Section):
    """What the data of both phases share."""

    sources: list[Source] = Field(min_length=1)
    """Read in this order."""
    validation_fraction: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of the documents held back for validation, chosen by a hash of each document."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> PhaseData:
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two sources have the same name: {', '.join(repeated)}")
        return self


def _must_give(kind: Literal["text", "conversations"], why: str) -> AfterValidator:
    """Check that the format of each source gives what the phase learns from."""

    def check(source: Source, info: ValidationInfo) -> Source:
        formats = _formats_of(info)
        if formats and formats[source.format].gives != kind:
            allowed = ", ".join(name for name, found in formats.items() if found.gives == kind)
            raise ValueError(f"{why}, so `format` must be one of {allowed} (found {source.format})")
        return source

    return AfterValidator(check)


class TextData(PhaseData):
    """Phase 1: plain text as one stream of tokens."""

    sources: list[Annotated[Source, _must_give("text", "phase 1 reads text")]] = Field(min_length=1)
    """Read in this order."""
    max_tokens: int | None = Field(default=None, ge=1_000, le=10**12)
    """Stop after this many training tokens. Empty means all."""
    shard_tokens: int = Field(default=2_097_152, ge=4_096, le=2**31)
    """Tokens in a shard file (2 bytes each)."""
    min_document_words: Count = 10
    """Documents with fewer words are dropped and counted (redirects, empty pages)."""


class ConversationData(PhaseData):
    """Phase 2: conversations, each at most one window long."""

    sources: list[Annotated[Source, _must_give("conversations", "phase 2 reads conversations")]] = Field(min_length=1)
    """Read in this order."""
    sequence_length: int = Field(default=256, ge=32, le=4_096)
    """The window in tokens. At most `model.positions` of phase 1."""
    shard_conversations: int = Field(default=16_384, ge=16, le=2**31)
    """Conversations in a shard."""


class DataConfig(Section):
    """`data.yaml`: what the two phases learn from."""

    phase1: TextData
    phase2: ConversationData

    def of(self, phase: Phase) -> PhaseData:
        """The section of one phase."""
        section: PhaseData = getattr(self, phase.name)
        return section


def load_data_config(folder: Path, formats: Mapping[str, FormatKind]) -> DataConfig:
    """Read `data.yaml`. Raises `ConfigError` with every mistake in it. `formats`: all known formats by name."""
    return load(folder / DATA_FILE, DataConfig, {"formats": formats})
