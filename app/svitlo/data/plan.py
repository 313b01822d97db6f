"""How a phase's documents become shards: the only place in `data/` that asks which phase it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from svitlo.config import ConversationData, PhaseData, TextData
from svitlo.data.tasks import ConversationTask, Task, TextTask
from svitlo.data.writing import ConversationWriter, SplitWriter, TextWriter
from svitlo.phases import INSTRUCTION_TUNING, PRETRAINING, Phase
from svitlo.storage.files import digest_of

RECIPE = 1
"""Raised whenever the same sources and configuration give other tokens, so that old data is made again."""


def preparation_key(data: PhaseData, tokenizer_digest: str) -> str:
    """What, besides the sources, decides about the shards: a manifest records it as `configuration_digest`."""
    return digest_of({"configuration": data.model_dump(mode="json"), "tokenizer": tokenizer_digest, "recipe": RECIPE})


@dataclass(frozen=True)
class Plan:
    """What one phase's preparation does with its documents."""

    task: Task
    writer: type[SplitWriter]
    shard_size: int
    """In the writer's own unit: tokens or conversations."""
    max_tokens: int | None
    """Stop after this many training tokens."""


def plan_for(phase: Phase, data: PhaseData) -> Plan:
    """The plan for a phase's section of `data.yaml`."""
    return _PLANS[phase](data)


def _text(data: PhaseData) -> Plan:
    assert isinstance(data, TextData)
    task = TextTask(data.validation_fraction, min_document_words=data.min_document_words)
    return Plan(task, TextWriter, data.shard_tokens, data.max_tokens)


def _conversations(data: PhaseData) -> Plan:
    assert isinstance(data, ConversationData)
    task = ConversationTask(data.validation_fraction, window=data.sequence_length)
    return Plan(task, ConversationWriter, data.shard_conversations, None)


_PLANS: dict[Phase, Callable[[PhaseData], Plan]] = {PRETRAINING: _text, INSTRUCTION_TUNING: _conversations}
