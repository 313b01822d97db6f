"""Batch = f(seed, step): which sequences an optimizer step sees. Any step can be computed without those before it."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from svitlo.data.shards import ConversationSet, TokenStream
from svitlo.errors import DamagedData
from svitlo.training.numerics import seed_for

IGNORED = -100
"""Target of a position without loss: torch's own convention."""

_MULTIPLE = 4
"""Conversations in a micro-batch are padded to a multiple of this, but never beyond the longest conversation."""
_ROUNDS = 6
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def permuted(position: int, size: int, key: int) -> int:
    """Where `position` goes in the pseudo-random permutation of `range(size)` that `key` selects. O(1).

    A balanced Feistel network over the next power of four, walked until the value falls below `size` (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): under 4 rounds of walking on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = position
    while True:
        left, right = value >> half, value & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (seed_for(key, round_number, right) & mask)
        value = left << half | right
        if value < size:
            return value


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass sees."""

    inputs: Tensor
    """Token ids, int64 [sequences, length]."""
    targets: Tensor
    """The next token at each position, int64 [sequences, length]. `IGNORED` where there is no loss."""

    @property
    def num_targets(self) -> int:
        """Positions with loss."""
        return int((self.targets != IGNORED).sum())


class Batches(Protocol):
    """The training or validation data of a phase, in optimizer steps."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of an optimizer step."""

    def target_counts(self, vocab_size: int) -> Tensor:
        """How often each token carries loss in the whole data, int64 [vocab_size]."""

    def in_order(self, num_sequences: int, skip: int = 0) -> Iterator[MicroBatch]:
        """The first sequences in their own order, for evaluation, without the first `skip` micro-batches of them."""


class _StepBatches(ABC):
    """Reshuffles in each epoch and cuts the epoch into optimizer steps. The last step of an epoch is shorter.

    While a step is computed, a thread verifies the shards that the next one needs.
    """

    def __init__(self, num_sequences: int, micro_batch: int, gradient_accumulation: int, seed: int) -> None:
        self.num_sequences = num_sequences
        self._micro_batch = micro_batch
        self._batch = micro_batch * gradient_accumulation
        self._seed = seed
        self._in_background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify shards")

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_sequences // self._batch)

    def step(self, step: int) -> list[MicroBatch]:
        batch = self._step(step)
        needed = self._data.unverified(lambda: self._shards_of(step + 1))
        if needed:
            self._in_background.submit(self._verify, needed)
        return batch

    @property
    @abstractmethod
    def _data(self) -> TokenStream | ConversationSet: ...

    @abstractmethod
    def _step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of an optimizer step."""

    @abstractmethod
    def _shards_of(self, step: int) -> set[int]:
        """The numbers of the shards that a step reads."""

    def _verify(self, shards: list[int]) -> None:
        with contextlib.suppress(DamagedData):  # whoever reads it finds it
            for shard in shards:
                self._data.verify(shard)

    def _sequences(self, step: int) -> list[int]:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self._batch
        key = seed_for("epoch", self._seed, epoch)
        positions = range(first, min(first + self._batch, self.num_sequences))
        return [permuted(position, self.num_sequences, key) for position in positions]

    def _micro_batches(self, sequences: list[int]) -> list[list[int]]:
        return [sequences[i : i + self._micro_batch] for i in range(0, len(sequences), self._micro_batch)]


class TextBatches(_StepBatches):
    """Phase 1: windows of `sequence_length` + 1 tokens, cut from the stream end to end.

    Each epoch shifts the windows. No place in the text is cut twice, and the model memorises no window (docs/log.md).
    The shifts are multiples of the golden ratio, which stay well apart for any number of epochs.
    """

    def __init__(
        self, stream: TokenStream, sequence_length: int, micro_batch: int, gradient_accumulation: int, seed: int
    ) -> None:
        super().__init__((stream.num_tokens - 1) // sequence_length, micro_batch, gradient_accumulation, seed)
        self._stream = stream
        self._length = sequence_length

    @property
    def _data(self) -> TokenStream:
        return self._stream

    def _step(self, step: int) -> list[MicroBatch]:
        return [self._load(part, self._shift(step)) for part in self._micro_batches(self._sequences(step))]

    def _shards_of(self, step: int) -> set[int]:
        starts = (self._start(sequence, self._shift(step)) for sequence in self._sequences(step))
        return {shard for start in starts for shard in self._stream.shards_of(start, start + self._length + 1)}

    def _shift(self, step: int) -> int:
        return int(step // self.steps_per_epoch * _GOLDEN_RATIO % 1 * self._length)

    def _start(self, sequence: int, shift: int) -> int:
        return min(sequence * self._length + shift, self._stream.num_tokens - self._length - 1)

    def target_counts(self, vocab_size: int) -> Tensor:
        return torch.from_numpy(self._stream.token_counts(vocab_size))

    def in_order(self, num_sequences: int, skip: int = 0) -> Iterator[MicroBatch]:
        for part in self._micro_batches(list(range(num_sequences)))[skip:]:
            yield self._load(part)

    def _load(self, sequences: list[int], shift: int = 0) -> MicroBatch:
        starts = [self._start(sequence, shift) for sequence in sequences]
        windows = np.stack([self._stream.read(start, start + self._length + 1) for start in starts])
        tokens = torch.from_numpy(windows.astype(np.int64))
        return MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class ConversationBatches(_StepBatches):
    """Phase 2: conversations. Within a step, those of similar length share a micro-batch to keep padding low.

    Each step is still a random sample of all lengths: sorting happens only inside the step.
    """

    def __init__(
        self,
        conversations: ConversationSet,
        sequence_length: int,
        pad_token: int,
        micro_batch: int,
        gradient_accumulation: int,
        seed: int,
    ) -> None:
        """`sequence_length`: tokens in the longest conversation, at most."""
        super().__init__(len(conversations), micro_batch, gradient_accumulation, seed)
        self._conversations = conversations
        self._longest = sequence_length - 1
        self._pad = pad_token

    @property
    def _data(self) -> ConversationSet:
        return self._conversations

    def _step(self, step: int) -> list[MicroBatch]:
        return [self._load(part) for part in self._micro_batches(self._by_length(self._sequences(step)))]

    def _shards_of(self, step: int) -> set[int]:
        return {self._conversations.shard_of(sequence) for sequence in self._sequences(step)}

    def target_counts(self, vocab_size: int) -> Tensor:
        return torch.from_numpy(self._conversations.token_counts(vocab_size))

    def in_order(self, num_sequences: int, skip: int = 0) -> Iterator[MicroBatch]:
        for part in self._micro_batches(self._by_length(list(range(num_sequences))))[skip:]:
            yield self._load(part)

    def _by_length(self, sequences: list[int]) -> list[int]:
        return sorted(sequences, key=lambda sequence: (self._conversations.length(sequence), sequence))

    def _load(self, sequences: list[int]) -> MicroBatch:
        # The last token is never an input and the first is never a target, so a row has one position fewer than tokens.
        length = max(self._conversations.length(sequence) for sequence in sequences) - 1
        # Matrix products are compiled for each size. Fewer sizes are faster and take less memory.
        length = min(-(-length // _MULTIPLE) * _MULTIPLE, self._longest)
        inputs = torch.full((len(sequences), length), self._pad, dtype=torch.int64)
        targets = torch.full((len(sequences), length), IGNORED, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            tokens_and_mask = self._conversations.conversation(sequence)
            tokens, mask = (torch.from_numpy(part.astype(np.int64)) for part in tokens_and_mask)
            inputs[row, : len(tokens) - 1] = tokens[:-1]
            targets[row, : len(tokens) - 1] = torch.where(mask[1:] == 1, tokens[1:], IGNORED)
        # Padding is on the right and attention looks only to the left. No token ever sees it, so no mask is needed.
        return MicroBatch(inputs, targets)
