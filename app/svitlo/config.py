"""The YAML files as typed, validated objects.

All mistakes in a file are collected and raised together, each with file, key, value and reason. For an unknown key the
message names the nearest valid one.
"""

from __future__ import annotations

import codecs
import difflib
import encodings.aliases
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from svitlo.errors import ConfigError
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING, Phase

DATA_FILE = "data.yaml"

UNPINNED = "unpinned"


class Section(BaseModel):
    """What all sections share: unknown keys are mistakes, and values never change after they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# --- data.yaml -------------------------------------------------------------------------------------------------------


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

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
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
    max_documents: int | None = Field(default=None, ge=1)
    """Stop after this many documents of this source."""
    fields: dict[str, str] | None = Field(default=None, min_length=1, exclude_if=lambda value: value is None)
    """For records whose field names differ from the format's: `{instruction: prompt, output: response}`. If not set, it
    is left out of what is recorded, so that data prepared before this key existed stays valid."""

    longest_document: int | None = Field(default=None, ge=100, exclude_if=lambda value: value is None)
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
                raise ValueError(f"format {info.data['format']} has no field `{name}`; {hint}")
        return names

    @model_validator(mode="after")
    def _has_one_origin(self) -> Source:
        if (self.hub is None) == (self.files is None):
            raise ValueError("give either `hub` or `files`: a source has exactly one origin")
        if self.hub is not None and self.revision is None:
            raise ValueError("`revision` is missing: pin the data set to a commit, or runs cannot be repeated")
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}|" + UNPINNED, self.revision):
            raise ValueError(
                f"`revision` ({self.revision}) is not a commit: give its 40 hex digits, because branches and tags move "
                f"(or `{UNPINNED}`, to take the current one)"
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
    max_tokens: int | None = Field(default=None, ge=1_000)
    """Stop after this many training tokens. Empty means all."""
    shard_tokens: int = Field(default=2_097_152, ge=4_096)
    """Tokens in a shard file (2 bytes each)."""
    min_document_words: int = Field(default=10, ge=1)
    """Documents with fewer words are dropped and counted (redirects, empty pages)."""


class ConversationData(PhaseData):
    """Phase 2: conversations, each at most one window long."""

    sources: list[Annotated[Source, _must_give("conversations", "phase 2 reads conversations")]] = Field(min_length=1)
    """Read in this order."""
    sequence_length: int = Field(default=256, ge=32, le=4_096)
    """The window in tokens. At most `model.positions` of phase 1."""
    shard_conversations: int = Field(default=16_384, ge=16)
    """Conversations in a shard."""


class DataConfig(Section):
    """`data.yaml`: what the two phases learn from."""

    phase1: TextData
    phase2: ConversationData

    def of(self, phase: Phase) -> PhaseData:
        """The section of one phase."""
        section: PhaseData = getattr(self, phase.name)
        return section


# --- phase1_pretraining.yaml, phase2_instruction_tuning.yaml ---------------------------------------------------------


class ModelConfig(Section):
    """The shape of the GPT-2 model."""

    layers: int = Field(default=6, ge=1, le=96)
    width: int = Field(default=320, ge=8, le=8_192)
    """Embedding and hidden size; a multiple of `heads`."""
    heads: int = Field(default=5, ge=1)
    positions: int = Field(default=256, ge=32, le=4_096)
    """The window in tokens."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"`width` ({self.width}) must be a multiple of `heads` ({self.heads})")
        return self


class TrainingConfig(Section):
    """How long to train, and how."""

    max_epochs: int = Field(default=3, ge=1)
    """At most this many passes over the training data."""
    max_steps: int | None = Field(default=None, ge=1)
    """At most this many optimizer steps. Empty means as many as `max_epochs` gives."""
    micro_batch: int = Field(default=4, ge=1)
    """Sequences in one forward and backward pass."""
    gradient_accumulation: int = Field(default=4, ge=1)
    """Micro-batches in one optimizer step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon for the matrices of the blocks, AdamW for the rest. `adamw`: AdamW for all."""
    learning_rate: float = Field(default=5e-3, gt=0, lt=1)
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = Field(default=0.02, gt=0, lt=1)
    """Peak learning rate of Muon."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    muon_weight_decay: float = Field(default=0.1, ge=0)
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly to its peak."""
    schedule: Literal["cosine", "linear", "trapezoid"] = "linear"
    """How the learning rates fall after the warm-up. `trapezoid` keeps the peak until the last `decay_fraction`."""
    decay_fraction: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps over which `trapezoid` falls."""
    final_learning_rate_fraction: float = Field(default=0.0, ge=0, le=1)
    """The learning rates fall to this share of their peak."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of AdamW, for matrices. Norms and biases have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    early_stopping_patience: int = Field(default=2, ge=1)
    """Stop after this many evaluations in a row without improvement."""
    min_improvement: float = Field(default=0.001, ge=0)
    """Validation loss must fall by more than this to count as improvement."""
    keep_weights: Literal["best", "last"] = "best"
    """What a phase hands on: the weights with the lowest validation loss, or those of the last evaluation."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    auto_resume: bool = True
    """Go on from the newest good checkpoint. `false` refuses to start where checkpoints exist."""


class HeadConfig(Section):
    """What the loss is computed over while training. Validation always uses the whole vocabulary."""

    sampled_fraction: float = Field(default=0.9, ge=0, le=1)
    """Share of the steps, from the first, that compute only a part of the vocabulary. 0: always all of it."""
    sampled_tokens: int = Field(default=3_072, ge=1)
    """Average number of tokens drawn in each step, in addition to its targets. They stand for the whole vocabulary."""


class EvaluationConfig(Section):
    """When to measure the validation loss, and on how much data."""

    every_n_steps: int = Field(default=1_000, ge=1)
    max_sequences: int | None = Field(default=500, ge=1)
    """Use only this many validation sequences, from the first. Empty means all."""


class CheckpointConfig(Section):
    """When to save. None of these change the result, so you may change them during a run."""

    save_every_seconds: float = Field(default=60, ge=1)
    """The shortest interval. It grows while saving would cost more than `max_cost`."""
    save_every_n_steps: int | None = Field(default=None, ge=1)
    """Also save every this many optimizer steps."""
    max_cost: float = Field(default=0.01, gt=0, le=1)
    """The largest share of the time that saving may take."""
    keep: int = Field(default=3, ge=2, le=100)
    """Checkpoints to keep, including the newest. At least 2, because the next power cut may damage the newest."""
    emergency_save_on_interrupt: bool = True
    """Save on SIGTERM and SIGINT."""


class ReportingConfig(Section):
    """What people see. None of these change the result."""

    line_every_seconds: float = Field(default=5, gt=0)
    """Seconds between progress lines."""
    sample_prompts: list[str] = ["The sun is", "Water is a", "In the winter, people"]
    """Completed at each evaluation."""
    sample_tokens: int = Field(default=40, ge=0, le=1_000)
    stop_after_seconds_without_progress: float = Field(default=1_800, ge=10)
    """The watchdog ends a trainer that has made no progress for this long, so that it restarts."""


class NumericsConfig(Section):
    """What decides the bits of the result besides the data. It belongs to the run, not to the machine."""

    threads: int = Field(default=6, ge=1, le=256)
    """Threads used for arithmetic, regardless of the number of cores: sums are split into this many parts."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Precision of matrix products in training. `auto` takes bf16 if the CPU has it in hardware. It is chosen once,
    when a phase begins. Weights, optimizer and the softmax are always float32."""


class PhaseConfig(Section):
    """What the configurations of all phases share."""

    training: TrainingConfig = TrainingConfig()
    head: HeadConfig = HeadConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    numerics: NumericsConfig = NumericsConfig()

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that decides the result. A run only goes on if it is unchanged."""
        identity = self.model_dump(mode="json", exclude={"checkpoints", "reporting"})
        del identity["training"]["auto_resume"]
        return identity


class PretrainingConfig(PhaseConfig):
    """`phase1_pretraining.yaml`."""

    model: ModelConfig = ModelConfig()


class InstructionTuningConfig(PhaseConfig):
    """`phase2_instruction_tuning.yaml`. The model has the shape of phase 1."""


CONFIG_OF_PHASE: dict[Phase, type[PhaseConfig]] = {
    PRETRAINING: PretrainingConfig,
    INSTRUCTION_TUNING: InstructionTuningConfig,
}


# --- reading ---------------------------------------------------------------------------------------------------------

AnySection = TypeVar("AnySection", bound=Section)


def load_data_config(folder: Path, formats: Mapping[str, FormatKind]) -> DataConfig:
    """Read `data.yaml`. Raises `ConfigError` with every mistake in it. `formats`: all known formats by name."""
    return _load(folder / DATA_FILE, DataConfig, {"formats": formats})


def load_phase_config(folder: Path, phase: Phase) -> PhaseConfig:
    """Read the configuration of one phase. Raises `ConfigError` with every mistake in it."""
    return _load(folder / phase.config_file, CONFIG_OF_PHASE[phase])


def _load(path: Path, kind: type[AnySection], context: dict[str, Any] | None = None) -> AnySection:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: the file is missing. Name the folder that holds it with --config or SVITLO_CONFIG"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) and values is not None:
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__} {str(values)[:60]!r}")
    try:
        return kind.model_validate(values or {}, context=context)
    except ValidationError as error:
        mistakes = [_explain(kind, mistake) for mistake in error.errors()]
        heading = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError("\n".join([f"{path}: {heading}", *(f"  {mistake}" for mistake in mistakes)])) from None


def _explain(kind: type[Section], mistake: Any) -> str:
    """One line: key, value, reason and, for an unknown key, the nearest valid one."""
    location = mistake["loc"]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if mistake["type"] == "extra_forbidden":
        valid = _keys_at(kind, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}"
        return f"{key}: unknown key; {hint}"
    if mistake["type"] == "missing":
        return f"{key}: missing; it has no default"
    reason = str(mistake["msg"]).removeprefix("Value error, ")
    value = mistake["input"]
    shown = "" if isinstance(value, (dict, list, BaseModel)) else f" = {value!r}"
    if mistake["type"] == "string_type" and not isinstance(value, (dict, list)):
        reason += "; put it in quotes"
    return f"{key}{shown}: {reason[0].lower() + reason[1:]}"


def _keys_at(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    """The valid keys of the section at `location`."""
    section: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        arguments = getattr(section, "__args__", None)
        if arguments:
            section = arguments[0]
    return sorted(section.model_fields)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as people mean it: duplicate keys are mistakes, and only what looks like a number or a truth value is one.

    YAML 1.1 silently takes the last of two keys, 010 for 8, 1:30 for 90, `no` for false, and 2024-01-01 for a date.
    Here these are text. Where a number or a truth value is expected, 010 is ten and `no` is false.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key is text, and this one is {key!r:.60}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_PREFIX = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "float": (_FLOAT, "-+0123456789."),
}
"""What a plain word is, and the characters that it begins with."""
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_PREFIX) not in {*_RESOLVED, "timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _RESOLVED.items():
    _UniqueKeyLoader.add_implicit_resolver(_PREFIX + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))
