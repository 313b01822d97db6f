"""Batch = f(seed, step)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.manifest import load_manifest
from svitlo.training.batches import IGNORED, ConversationBatches, TextBatches, permuted
from tests.conftest import Job


@given(size=st.integers(1, 300), key=st.integers(0, 2**63 - 1))
def test_permutation_visits_every_position_once(size: int, key: int) -> None:
    assert sorted(permuted(position, size, key) for position in range(size)) == list(range(size))


def test_permutations_of_two_keys_differ_and_neither_is_the_identity() -> None:
    first, second = ([permuted(position, 1000, key) for position in range(1000)] for key in (1, 2))
    assert first != second
    assert np.mean(np.array(first) == np.arange(1000)) < 0.02
    # Neighbours do not stay neighbours: a weak network would only shift blocks.
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.02


@pytest.fixture
def text(prepared: Job) -> tuple[TokenStream, TextBatches]:
    folder = prepared.volumes / "data" / "phase1"
    stream = TokenStream(folder, load_manifest(folder), "train")
    return stream, TextBatches(stream, 64, micro_batch=4, gradient_accumulation=2, seed=7)


def test_an_epoch_of_text_holds_every_token_once(text: tuple[TokenStream, TextBatches]) -> None:
    stream, batches = text
    seen = [
        tuple(row.tolist())
        for step in range(batches.steps_per_epoch)
        for micro_batch in batches.step(step)
        for row in micro_batch.inputs
    ]
    expected = [tuple(stream.read(start, start + 64).tolist()) for start in range(0, batches.num_sequences * 64, 64)]
    assert sorted(seen) == sorted(expected)
    assert seen != expected


def test_each_epoch_cuts_the_text_elsewhere_and_still_holds_nearly_every_token(
    text: tuple[TokenStream, TextBatches],
) -> None:
    stream, batches = text
    tokens = stream.read(0, stream.num_tokens).tolist()
    shifts = []
    for epoch in range(5):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        seen = sorted(
            row.tolist() for step in steps for micro_batch in batches.step(step) for row in micro_batch.inputs
        )
        cuts = (sorted(_windows(tokens, shift, len(seen))) == seen for shift in range(64))
        shifts.append(list(cuts).index(True))
    assert shifts[0] == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise([*sorted(shifts), 64])]
    assert min(gaps) >= 64 // 8


def _windows(tokens: list[int], shift: int, number: int) -> list[list[int]]:
    """End to end from the token `shift` on, but for the last one, which ends before the last token."""
    starts = [min(64 * window + shift, len(tokens) - 65) for window in range(number)]
    return [tokens[start : start + 64] for start in starts]


def test_epochs_have_different_orders_and_a_step_is_the_same_when_asked_again(
    text: tuple[TokenStream, TextBatches],
) -> None:
    _, batches = text
    first, again, next_epoch = (batches.step(step)[0].inputs for step in (3, 3, 3 + batches.steps_per_epoch))
    assert first.equal(again)
    assert not first.equal(next_epoch)


def test_targets_are_the_next_tokens(text: tuple[TokenStream, TextBatches]) -> None:
    for micro_batch in text[1].step(0):
        assert micro_batch.inputs[:, 1:].equal(micro_batch.targets[:, :-1])


@pytest.fixture
def conversations(prepared: Job) -> tuple[ConversationSet, ConversationBatches]:
    folder: Path = prepared.volumes / "data" / "phase2"
    conversations = ConversationSet(folder, load_manifest(folder), "train")
    return conversations, ConversationBatches(conversations, 64, 50_257, micro_batch=4, gradient_accumulation=8, seed=7)


def test_an_epoch_of_conversations_has_loss_on_every_reply_token_once(
    conversations: tuple[ConversationSet, ConversationBatches],
) -> None:
    data, batches = conversations
    expected = sum(int(data.conversation(number)[1][1:].sum()) for number in range(len(data)))
    steps = [micro_batch for step in range(batches.steps_per_epoch) for micro_batch in batches.step(step)]
    assert sum(micro_batch.num_targets for micro_batch in steps) == expected
    assert sum(len(micro_batch.inputs) for micro_batch in steps) == len(data)


def test_only_reply_tokens_are_targets_and_padding_never_is(
    conversations: tuple[ConversationSet, ConversationBatches],
) -> None:
    for micro_batch in conversations[1].step(0):
        has_loss = micro_batch.targets != IGNORED
        assert has_loss.any(dim=1).all(), "every conversation has a reply"
        assert not has_loss[:, 0].any(), "the first target belongs to the question"
        assert not (micro_batch.targets == 50_257).any()
        # Where the next token is known from the inputs, the target is that token.
        both = has_loss[:, :-1] & (micro_batch.inputs[:, 1:] != 50_257)
        assert micro_batch.targets[:, :-1][both].equal(micro_batch.inputs[:, 1:][both])


def test_padding_stays_under_ten_percent(conversations: tuple[ConversationSet, ConversationBatches]) -> None:
    data, batches = conversations
    positions = sum(m.inputs.numel() for step in range(batches.steps_per_epoch) for m in batches.step(step))
    tokens = sum(map(data.length, range(len(data)))) - len(data)
    assert 1 - tokens / positions < 0.10


def test_lengths_are_few_and_none_is_beyond_the_window(
    conversations: tuple[ConversationSet, ConversationBatches],
) -> None:
    data, batches = conversations
    longest = max(map(data.length, range(len(data)))) - 1
    lengths = {m.inputs.shape[1] for step in range(batches.steps_per_epoch) for m in batches.step(step)}
    assert lengths
    assert all(length % 4 == 0 or length == 63 for length in lengths)
    assert longest <= max(lengths) <= min(longest + 3, 63)
