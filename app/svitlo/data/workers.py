"""Cleaning and tokenising on several cores, with outcomes in the order of the documents.

The calling process handles the first few megabytes itself, because starting others takes longer than a small corpus.
The result does not depend on the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from svitlo.data.formats import Raw
from svitlo.data.instructions import Outcome
from svitlo.data.sanity import size_of
from svitlo.data.tasks import Task
from svitlo.data.tokenizer import Tokenizer
from svitlo.errors import SvitloError
from svitlo.machine import num_cores

BATCH_CHARACTERS = 500_000
BATCH_DOCUMENTS = 1_000
CHARACTERS_BEFORE_WORKERS = 3_000_000
MOST_WORKERS = 4
"""More would only wait for the one process that reads, and each takes about 150 MB."""


Tagged = TypeVar("Tagged")


class WorkerDied(SvitloError):  # noqa: N818
    """A worker process was killed, most likely because the machine or the container ran out of memory."""

    is_permanent = False


def process(task: Task, batch: list[Raw], tokenizer: Tokenizer) -> list[Outcome]:
    """What each raw document becomes."""
    return [task.outcome(raw, tokenizer) for raw in batch]


class Workers:
    """A tokenizer in this process and, after the first few megabytes, more of them in worker processes."""

    def __init__(self, num_workers: int | None = None, characters_before: int = CHARACTERS_BEFORE_WORKERS) -> None:
        self._num_workers = num_workers or min(MOST_WORKERS, num_cores())
        self._characters_left = characters_before
        self._pool: ProcessPoolExecutor | None = None
        self._tokenizer: Tokenizer | None = None

    def outcomes(self, task: Task, documents: Iterable[tuple[Tagged, Raw]]) -> Iterator[tuple[Tagged, Outcome]]:
        """Each document's tag with its outcome, in order. Raises `WorkerDied`."""
        waiting: deque[tuple[list[Tagged], Future[list[Outcome]]]] = deque()
        try:
            for tags, batch in _batches(documents):
                if self._num_workers < 2 or self._characters_left > 0:
                    self._characters_left -= sum(size_of(raw) for raw in batch)
                    if self._tokenizer is None:
                        self._tokenizer = Tokenizer()
                    yield from zip(tags, process(task, batch, self._tokenizer), strict=True)
                    continue
                waiting.append((tags, self._submit(task, batch)))
                while len(waiting) > 2 * self._num_workers or (waiting and waiting[0][1].done()):
                    yield from _finished(*waiting.popleft())
            while waiting:
                yield from _finished(*waiting.popleft())
        except BrokenProcessPool:
            raise WorkerDied(
                "a worker process was killed, most likely because memory ran out. What is prepared so far stays. Run "
                "`svitlo prepare` again. If it happens again, give the container more memory"
            ) from None
        finally:
            for _, future in waiting:
                future.cancel()

    def _submit(self, task: Task, batch: list[Raw]) -> Future[list[Outcome]]:
        if self._pool is None:
            self._tokenizer = None
            # Not fork: library threads may hold locks.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num_workers, mp_context=context, initializer=_start_worker)
        return self._pool.submit(_work, task, batch)

    def close(self) -> None:
        """Stop the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _batches(documents: Iterable[tuple[Tagged, Raw]]) -> Iterator[tuple[list[Tagged], list[Raw]]]:
    tags: list[Tagged] = []
    batch: list[Raw] = []
    characters = 0
    for tag, raw in documents:
        tags.append(tag)
        batch.append(raw)
        characters += size_of(raw)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield tags, batch
            tags, batch, characters = [], [], 0
    if batch:
        yield tags, batch


def _finished(tags: list[Tagged], future: Future[list[Outcome]]) -> Iterator[tuple[Tagged, Outcome]]:
    yield from zip(tags, future.result(), strict=True)


# --- in the worker processes -----------------------------------------------------------------------------------------

_worker_tokenizer: Tokenizer | None = None


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already use the cores
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    global _worker_tokenizer
    _worker_tokenizer = Tokenizer()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """If the parent is killed, exit, too, instead of waiting for work forever."""
    parent.join()
    os._exit(1)


def _work(task: Task, batch: list[Raw]) -> list[Outcome]:
    assert _worker_tokenizer is not None
    return process(task, batch, _worker_tokenizer)
