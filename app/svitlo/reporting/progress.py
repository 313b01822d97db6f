"""What the trainer tells people while it works: one object turns what happens into lines, files and events."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from svitlo.config import ReportingConfig
from svitlo.phases import PHASES, Phase, phase_numbered
from svitlo.reporting.events import EventLog, now_as_text, print_line
from svitlo.reporting.metrics import MetricsLog, read_metrics
from svitlo.reporting.observer import Observer, RunState
from svitlo.reporting.status import WAITING_FOR_DATA, Status, progress_line, read_status, set_health, write_status
from svitlo.running import RunningClock, Watchdog
from svitlo.storage.space import reason_of, remedy_for
from svitlo.units import duration
from svitlo.volumes import Volumes

MACHINE_FAULT = "machine fault"
GAVE_UP = "gave up"
"""Kinds of events that later starts look for."""
_RECENT_STEPS = 50
"""Speed and time left are averages over this many steps."""
_STATUS_EVERY_SECONDS = 20.0
"""The status is written at least this often. Otherwise the process would be taken for dead."""


class Progress(Observer):
    """Lines for the log, `status.json`, `metrics.jsonl`, `events.jsonl`, the health file and the watchdog."""

    def __init__(self, volumes: Volumes, config: ReportingConfig) -> None:
        self._volumes = volumes
        self._config = config
        self._metrics = MetricsLog(volumes.metrics)
        self._events = EventLog(volumes.events)
        self._quiet_events = EventLog(volumes.events, say=lambda _: None)
        self.clock = RunningClock()
        """What steps are timed with."""
        self._watchdog = Watchdog(self.clock, config.stop_after_seconds_without_progress)
        self._process = psutil.Process()
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)
        self._printed_at = -math.inf
        self._evaluation_began: tuple[float, int] | None = None
        self._status_before = read_status(volumes.status)
        """Written by the process before this one."""
        self._written_at = -math.inf
        self._waiting_for = ""
        self._saved_at: float | None = None
        self._status: dict[str, Any] = {"state": "starting"}

    # --- the life of the process -------------------------------------------------------------------------------------

    def cut_off(self, message: str, deaths: int) -> None:
        """The last trainer did not end cleanly."""
        self._events.record("cut off", message, deaths=deaths)

    def started(self) -> None:
        """The process has begun."""
        self._events.record("started", "trainer started")
        self._write(state="starting")
        set_health(True, "starting")
        self.alive()

    def alive(self) -> None:
        """Called wherever work makes progress. The watchdog ends a process that stops calling it, so that it restarts.

        The log then has the stacks of all threads. A pause of the whole container does not count.
        """
        self._watchdog.alive()
        if time.monotonic() - self._written_at > _STATUS_EVERY_SECONDS:
            self._write()

    def waiting_for_data(self, phase: Phase, reason: str, *, is_damaged: bool) -> None:
        """Training cannot begin or go on. `reason`: why the present data is not used, if there is any."""
        self.alive()
        message = f"waiting for the data of {phase}" + (f": {reason}" if reason else "")
        self._write(state=WAITING_FOR_DATA, message=message, phase=phase.number)
        if self._waiting_for != message:
            self._waiting_for = message
            set_health(not is_damaged, message)
            self._events.record("waiting", message, phase=phase.number)

    def data_found(self, phase: Phase) -> None:
        """The data of a phase is there. A trainer that dies from here on did not die while waiting."""
        self._waiting_for = ""
        self._status = {}  # the step shown so far belongs to the phase before
        self._write(state="starting", phase=phase.number)
        set_health(True, "starting")

    def stopped(self, reason: str) -> None:
        """A signal ended the work."""
        self._write(state="stopped", message=reason)
        self._events.record("stopped", reason)

    def machine_fault(self, message: str) -> None:
        """The machine has computed one thing in two ways."""
        self._quiet_events.record(MACHINE_FAULT, message)  # the command line says it

    def gave_up(self, reason: str) -> None:
        """The trainer has died so often that it does not try again by itself."""
        self._quiet_events.record(GAVE_UP, reason)  # the command line says it

    def exporting(self) -> None:
        """The model is about to be exported in the usual formats."""
        self.alive()
        print_line("exporting the model")
        self._write(state="exporting")

    def complete(self, message: str) -> None:
        """Nothing is left to do."""
        self._quiet_events.record("finished", message)  # the command line says it
        self._status = {key: self._status.get(key) for key in ("phase", "step", "num_steps", "best_loss", "run_id")}
        self._write(state="complete", message=message)

    def close(self) -> None:
        """The process is about to end, or to wait."""
        self._watchdog.stop()
        self._metrics.close()

    # --- a phase -----------------------------------------------------------------------------------------------------

    def began(self, state: RunState, origin: str, num_steps: int, num_parameters: int) -> None:
        self._metrics.truncate_after(state.phase, -1)
        self._enter(state)
        self._events.record(
            "began",
            f"phase {state.phase} begins with {origin}: {num_parameters:,} parameters, {num_steps:,} steps, "
            f"{_numerics_in_words(state)}",
            phase=state.phase,
            num_parameters=num_parameters,
            num_steps=num_steps,
            run_id=state.run_id,
            numerics=state.numerics,
        )

    def resumed(self, state: RunState, num_steps: int, steps_per_epoch: int) -> None:
        """A phase goes on from a checkpoint. Metrics beyond it are work that must be repeated."""
        records = [record for record in read_metrics(self._volumes.metrics) if record["phase"] == state.phase]
        steps = [r for r in records if r["kind"] == "step" and r["step"] > state.global_step]
        evaluations = [r for r in records if r["kind"] == "evaluation" and r["step"] > state.last_evaluated_step]
        repeated = [one for one in (_counted(len(steps), "step"), _counted(len(evaluations), "evaluation")) if one]
        seconds = sum(record.get("seconds", 0.0) for record in steps + evaluations)
        lost = self._lost_evaluation(state, {r["step"] for r in records if r["kind"] == "evaluation"})
        if lost:
            repeated.append("a part of an evaluation")
            seconds += lost
        self._metrics.truncate_after(state.phase, state.global_step, state.last_evaluated_step)
        self._enter(state)
        self._saved_at = time.monotonic()
        epoch = state.global_step // max(1, steps_per_epoch) + 1
        self._events.record(
            "resumed",
            f"resumed at step {state.global_step:,} of {num_steps:,} (phase {state.phase}, epoch {epoch}); "
            + (f"{' and '.join(repeated)}, {duration(seconds)} of work repeated" if repeated else "no work repeated"),
            phase=state.phase,
            step=state.global_step,
            repeated_steps=len(steps),
            repeated_seconds=round(seconds, 1),
        )

    def _lost_evaluation(self, state: RunState, evaluated_steps: set[int]) -> float:
        """Seconds of an evaluation that the last process had not finished, beyond what the checkpoint holds of it."""
        before = self._status_before
        if before is None or not before.evaluated_batches or before.phase != state.phase or before.step is None:
            return 0.0
        if before.step < state.global_step or before.step in evaluated_steps:
            return 0.0
        kept = len(state.evaluated_batches) if before.step == state.global_step else 0
        share = max(0.0, 1 - kept / before.evaluated_batches)
        return share * (before.evaluation_seconds or 0.0)

    def numerics_changed(self, changes: str) -> None:
        """This machine or image gives other bits than the one that the run began on."""
        self._events.record(
            "numerics changed", f"from here on the bits differ from those of the machine the run began on: {changes}"
        )

    def threads_do_not_fit(self, threads: int, num_cores: int, file: str) -> None:
        cores = "core" if num_cores == 1 else "cores"
        slower = "so steps are slower (1.2 times with two threads a core)"
        effect = slower if threads > num_cores else f"so {num_cores - threads} of them stay idle"
        self._events.record(
            "threads",
            f"{file}: numerics.threads = {threads}, and {num_cores} {cores} may be used, {effect}. The number decides "
            f"about the bits and stays for the whole run. To change it, set it to {num_cores} in this file and begin "
            f"again with `make new-run`",
        )

    def fell_back(self, path: Path, reason: str) -> None:
        self._events.record(
            "fell back", f"{path} could not be used and was set aside: {reason}", path=str(path), reason=reason
        )

    def step(
        self, state: RunState, learning_rate: float, gradient_norm: float, num_tokens: int, seconds: float
    ) -> None:
        """An optimizer step is done. `num_tokens` counts all positions that were computed."""
        self.alive()
        self._recent.append((num_tokens, seconds))
        self._metrics.append(
            {
                "kind": "step",
                "phase": state.phase,
                "step": state.global_step,
                "epoch": state.epoch,
                "loss": state.loss,
                "learning_rate": learning_rate,
                "gradient_norm": gradient_norm,
                "tokens": state.tokens_seen,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(num_tokens / seconds, 1),
                "time": now_as_text(),
            }
        )
        self._status.update(loss=state.loss, learning_rate=learning_rate)

    def update(self, state: RunState, num_steps: int, max_epochs: int, work_left: Callable[[int], float]) -> None:
        """Print the progress line and write the status when it is time to.

        `work_left` gives the cost of a step and all after it, in any unit. Not all steps take equally long.
        """
        now = time.monotonic()
        if now - self._printed_at < self._config.line_every_seconds:
            return
        self._printed_at = now
        tokens = sum(num_tokens for num_tokens, _ in self._recent)
        seconds = sum(seconds for _, seconds in self._recent)
        self._status.update(
            phase=state.phase,
            step=state.global_step,
            num_steps=num_steps,
            epoch=state.epoch + 1,
            max_epochs=max_epochs,
        )
        if self._recent:
            self._status["tokens_per_second"] = tokens / seconds
            left = work_left(state.global_step)
            done = work_left(state.global_step - len(self._recent)) - left
            self._status["seconds_left"] = seconds * left / done
        self._write(state="training")
        set_health(True, f"training, phase {state.phase}")
        print_line(progress_line(Status(**self._status)))

    def evaluating(self, state: RunState, num_done: int, num_sequences: int) -> None:
        """Print a line when an evaluation begins, and again when it is time to: it can take minutes."""
        now = time.monotonic()
        if self._evaluation_began is None:
            self._evaluation_began = now, num_done
        elif now - self._printed_at < self._config.line_every_seconds:
            return
        self._printed_at = now
        began, first = self._evaluation_began
        self._write(
            state="evaluating",
            phase=state.phase,
            step=state.global_step,
            evaluated_batches=len(state.evaluated_batches),
            evaluation_seconds=now - began,
        )
        where = f"phase {state.phase} | step {state.global_step:,}"
        left = (now - began) * (num_sequences - num_done) / (num_done - first) if num_done > first else None
        time_left = f" | {duration(left)} left" if left is not None else ""
        print_line(f"evaluating | {where} | {num_done:,} of {num_sequences:,} sequences{time_left}")

    def evaluated(
        self,
        state: RunState,
        loss: float,
        change: tuple[float, float] | None,
        is_best: bool,
        verdict: str,
        samples: list[tuple[str, str]],
    ) -> None:
        """An evaluation is done."""
        self.alive()
        where = {"phase": state.phase, "step": state.global_step}
        perplexity = math.exp(min(loss, 700.0))
        seconds = 0.0 if self._evaluation_began is None else time.monotonic() - self._evaluation_began[0]
        self._evaluation_began = None
        self._metrics.append(
            {
                "kind": "evaluation",
                **where,
                "epoch": state.epoch,
                "validation_loss": loss,
                "perplexity": perplexity,
                "change": change and change[0],
                "standard_error_of_change": change and change[1],
                "is_best": is_best,
                "seconds": round(seconds, 2),
                "time": now_as_text(),
            }
        )
        changed = f", {change[0]:+.4f} ± {change[1]:.4f}" if change else ""
        self._events.record(
            "evaluated",
            f"phase {state.phase}, step {state.global_step:,}: validation loss {loss:.4f}{changed}, perplexity "
            f"{perplexity:,.1f} ({verdict})",
            **where,
            validation_loss=loss,
        )
        is_untrained = state.global_step == 0 and phase_numbered(state.phase) is PHASES[0]
        for prompt, completion in samples:
            self._metrics.append(
                {"kind": "sample", **where, "prompt": prompt, "completion": completion, "time": now_as_text()}
            )
            if is_untrained:  # random weights write noise
                continue
            print_line(f'  "{prompt}" → {" ".join(completion.split())}')
        self._status.update(
            validation_loss=loss, best_loss=state.best_loss, evaluated_batches=None, evaluation_seconds=None
        )

    def phase_finished(self, state: RunState) -> None:
        """A phase is over and saved."""
        best = "" if state.best_loss is None else f"; hands on step {state.best_step:,}, loss {state.best_loss:.4f}"
        self._events.record(
            "phase finished", f"phase {state.phase} finished: {state.finished}{best}", phase=state.phase
        )

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def make_durable(self) -> None:
        """Sync the metrics to the disk before the checkpoint that relies on them."""
        self._metrics.make_durable()

    def saved(self, state: RunState, seconds: float) -> None:
        """A checkpoint is on disk."""
        self.alive()
        self._saved_at = time.monotonic()
        self._quiet_events.record(
            "saved",
            f"saved step {state.global_step:,} of phase {state.phase} in {seconds:.2f} s",
            phase=state.phase,
            step=state.global_step,
            seconds=round(seconds, 3),
        )
        self._status.update(checkpoint_step=state.global_step, checkpoint_time=now_as_text(), checkpoint_problem="")

    def save_failed(self, state: RunState, error: BaseException) -> None:
        """A checkpoint could not be written. The older one is untouched and training goes on."""
        reason = reason_of(error)
        remedy = remedy_for(error, self._volumes.root / "checkpoints")
        self._events.record(
            "save failed",
            f"step {state.global_step:,} of phase {state.phase} could not be saved ({reason}). The last good "
            f"checkpoint is untouched; training goes on and saves again later. {remedy}",
            phase=state.phase,
            step=state.global_step,
            reason=reason,
        )
        self._status.update(checkpoint_problem=reason)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _enter(self, state: RunState) -> None:
        """A phase is at work: everything shown belongs to it."""
        self._recent.clear()
        self._saved_at = None
        self._status = {"state": "starting", "phase": state.phase, "run_id": state.run_id}
        if state.best_loss is not None:
            self._status["best_loss"] = state.best_loss

    def _write(self, **fields: Any) -> None:
        self._status.update(fields)
        if fields and "message" not in fields:
            self._status.pop("message", None)
        self._written_at = time.monotonic()
        self._status["memory_bytes"] = self._process.memory_info().rss
        if self._saved_at is not None:
            self._status["checkpoint_age_seconds"] = time.monotonic() - self._saved_at
        write_status(self._volumes.status, **self._status)


def _counted(number: int, noun: str) -> str:
    """ "1 step", "1,200 steps", and nothing for none."""
    return f"{number:,} {noun}{'s' if number > 1 else ''}" if number else ""


def _numerics_in_words(state: RunState) -> str:
    numerics = state.numerics
    threads = "1 thread" if numerics["threads"] == 1 else f"{numerics['threads']} threads"
    return f"{numerics['precision']}, {threads}, {numerics['instruction_set']}"
