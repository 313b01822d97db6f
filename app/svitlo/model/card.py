"""The exported model's `README.md` (a model card), its loss curve and `training_record.json`."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from svitlo.phases import PHASES, Phase, phase_numbered
from svitlo.reporting.metrics import read_metrics
from svitlo.units import duration

LICENCES = {
    "wikimedia/wikipedia": "CC BY-SA",
    "rajpurkar/squad": "CC BY-SA",
    "tatsu-lab/alpaca": "CC BY-NC: not for commercial use",
    "OpenRL/daily_dialog": "CC BY-NC-SA: not for commercial use",
}
_COLOURS = {"training": "#9ecae1", "mean": "#2171b5", "validation": "#d94801"}


def write_card(folder: Path, record: dict[str, Any], has_curve: bool) -> None:
    """Write `README.md` and `training_record.json` into the export that is being built."""
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "training_record.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(card_text(record, has_curve), encoding="utf-8")


def card_text(record: dict[str, Any], has_curve: bool) -> str:
    """The model card as Markdown, from a training record."""
    phase, model = phase_numbered(record["phase"]), record["model"]
    parts = [_front_matter(), "# A language model trained from scratch by Svitlo\n", _introduction(record)]
    if not record["is_finished"]:
        parts.append(f"Training was **not finished** at this export ({phase}, step {record['step']:,}).\n")
    parts += ["## Use\n", _usage(phase, model["positions"])]
    parts += ["## Results\n", _results(record)]
    if has_curve:
        parts.append("![Loss over the steps of each phase](loss.png)\n")
    parts += ["## Data and licences\n", _data(record), "## Limits\n", _limits()]
    parts += ["## Training record\n", _training(record)]
    return "\n".join(parts)


def write_loss_curve(metrics: Path, target: Path, last_phase: int) -> bool:
    """Draw training and validation loss over the steps of each phase as PNG. False where there is nothing to draw."""
    curves = _curves(metrics, last_phase)
    if not curves:
        return False
    with tempfile.TemporaryDirectory() as cache:  # matplotlib wants to write beside HOME, which is read-only here
        os.environ.setdefault("MPLCONFIGDIR", cache)
        try:
            _draw(curves, target)
        finally:
            if os.environ.get("MPLCONFIGDIR") == cache:
                del os.environ["MPLCONFIGDIR"]
    return True


Points = list[tuple[int, float]]


def _curves(metrics: Path, last_phase: int) -> dict[Phase, tuple[Points, Points]]:
    """Per phase: (step, training loss) and (step, validation loss); what is not a finite number is left out."""
    curves: dict[Phase, tuple[Points, Points]] = {phase: ([], []) for phase in PHASES if phase.number <= last_phase}
    by_number = {phase.number: points for phase, points in curves.items()}
    for record in read_metrics(metrics):
        is_step = record["kind"] == "step"
        value = record.get("loss" if is_step else "validation_loss")
        points = by_number.get(record.get("phase", 0))
        if points is None or record["kind"] not in ("step", "evaluation"):
            continue
        if isinstance(value, (int, float)) and math.isfinite(value):
            points[0 if is_step else 1].append((record["step"], value))
    return {phase: points for phase, points in curves.items() if any(points)}


def _draw(curves: dict[Phase, tuple[Points, Points]], target: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(curves), 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (phase, (training, validation)) in zip(all_axes, curves.items(), strict=True):
        if training:
            _plot(axes, training, "training", "training, each step", 0.8)
        if len(training) >= 20:
            _plot(axes, _smooth(training), "mean", "training, mean", 1.5)
        if validation:
            _plot(axes, validation, "validation", "validation", 1.5, marker="o", markersize=3.5)
            step, best = min(validation, key=lambda point: point[1])
            axes.annotate(f"{best:.3f}", (step, best), (-4, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_title(_title(phase))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss, nats per token")
        axes.margins(y=0.12)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(target, format="png")


def _title(phase: Phase) -> str:
    return f"Phase {phase.number}: {phase.title}"


def _plot(axes: Any, points: Points, colour: str, label: str, width: float, **style: Any) -> None:
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=_COLOURS[colour], label=label, linewidth=width, **style)


def _smooth(points: Points) -> Points:
    """Means over consecutive steps: at most 100 points."""
    size = max(1, math.ceil(len(points) / 100))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (round(sum(step for step, _ in group) / len(group)), sum(loss for _, loss in group) / len(group))
        for group in groups
    ]


def _front_matter() -> str:
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": "en",
        "license": "other",
        "tags": ["gpt2", "svitlo"],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def _introduction(record: dict[str, Any]) -> str:
    model = record["model"]
    learnt = " and then ".join(phase.title for phase in PHASES[: record["phase"]])
    return (
        f"A GPT-2 of {record['parameters']:,} parameters ({model['layers']} layers, {model['width']} wide, "
        f"{model['heads']} heads, a window of {model['positions']} tokens, a vocabulary of {record['vocab_size']:,}), "
        f"trained on a CPU from random weights on {learnt}. Embedding and output head are tied.\n"
    )


def _usage(phase: Phase, positions: int) -> str:
    opening = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # this folder',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
    ]
    if phase.is_chat:
        lines = [
            *opening,
            'messages = [{"role": "user", "content": "What is water?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            "output = model.generate(**inputs)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        ]
    else:
        lines = [
            *opening,
            'inputs = tokenizer("Water is a", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
        ]
    note = (
        f"\nPrompt and answer share a window of {positions} tokens. A prompt may have {positions - 1} at most, and an "
        f"answer ends with the window. Set `max_length`, not `max_new_tokens`, to shorten it.\n"
    )
    return "\n".join([*lines, "```", note])


def _results(record: dict[str, Any]) -> str:
    lines = [
        "| | validation loss, first → kept | perplexity, first → kept | steps (kept) | tokens learnt from | time |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, phase in record["phases"].items():
        first, best = phase["first_validation_loss"], phase["best_validation_loss"]
        best_step = phase["best_validation_step"]
        steps = f"{phase['steps']:,}" + (f" ({best_step:,})" if best_step is not None else "")
        lines.append(
            f"| {_title(phase_numbered(int(number)))} | {_number(first)} → {_number(best)} | {_perplexity(first)} → "
            f"{_perplexity(best)} | {steps} | {phase['tokens_seen']:,} | {duration(phase['training_seconds'])} |"
        )
    ends = [f"Phase {number}: {phase['finished']}." for number, phase in record["phases"].items() if phase["finished"]]
    explanation = (
        "Losses are nats per token. In conversations only the tokens of replies count, so the two phases cannot be "
        "compared. "
        "Kept are the weights of the evaluation with the lowest validation loss, or of the last one where the "
        "configuration says so (`keep_weights: last`)."
    )
    return "\n".join([*lines, "", " ".join([*ends, explanation]), ""])


def _data(record: dict[str, Any]) -> str:
    rows = [
        f"| {number} | {source.get('name', '?')} | {_origin(source)} | {_licence(source)} |"
        for number, phase in record["phases"].items()
        for source in phase["data"].get("sources", [])
    ]
    heading = ["| phase | source | from | licence |", "| --- | --- | --- | --- |"]
    lines = (
        [*heading, *rows] if rows else ["The sources are no longer known: the prepared data was not there any more."]
    )
    for number, phase in record["phases"].items():
        data = phase["data"]
        counts = ""
        if "train" in data:
            kind = phase_numbered(int(number)).unit
            train, validation = data["train"], data["validation"]
            counts = (
                f": {train['tokens']:,} tokens in {train['documents']:,} {kind} for training, "
                f"{validation['tokens']:,} in {validation['documents']:,} for validation"
            )
        lines += ["", f"Data of phase {number}{counts}. Identity (SHA-256 of its manifest): `{data['digest']}`."]
    lines += [
        "",
        "Licences of the data sets that Svitlo uses by default: Wikipedia CC BY-SA, SQuAD CC BY-SA, **Alpaca CC BY-NC, "
        "DailyDialog CC BY-NC-SA**. A model trained on the last two, under whatever name their files had, is for "
        "**non-commercial use**. For any other source its own licence holds.",
        "",
    ]
    return "\n".join(lines)


def _origin(source: dict[str, Any]) -> str:
    identity = source.get("identity", {})
    if identity.get("repository"):
        revision = str(identity.get("revision") or "")[:12]
        return f"`{identity['repository']}`" + (f" at `{revision}`" if revision else "")
    files = identity.get("files")
    names = [str(file.get("name", "?") if isinstance(file, dict) else file) for file in files or []]
    if not names:
        return "-"
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _licence(source: dict[str, Any]) -> str:
    return LICENCES.get(str(source.get("identity", {}).get("repository")), "that of these files; see below")


def _limits() -> str:
    return (
        "This is a very small model. It writes fluent-looking English and makes facts up; it knows little, cannot "
        "calculate, and was not trained to refuse anything. Do not use it where a wrong answer does harm.\n"
    )


def _training(record: dict[str, Any]) -> str:
    lines = ["Everything below, and more, is in `training_record.json`.", ""]
    for number, phase in record["phases"].items():
        numerics = ", ".join(f"{key} {value}" for key, value in phase["numerics"].items())
        lines += [f"### {_title(phase_numbered(int(number)))}", "", f"Numerics: {numerics}.", "", "```yaml"]
        lines += [yaml.safe_dump(phase["configuration"], sort_keys=False).rstrip(), "```", ""]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines.append(f"Run `{record['run_id']}`. {versions}.")
    return "\n".join(lines) + "\n"


def _number(loss: float | None) -> str:
    return "?" if loss is None else f"{loss:.4f}"


def _perplexity(loss: float | None) -> str:
    if loss is None:
        return "?"
    perplexity = math.exp(min(loss, 700.0))
    return f"{perplexity:,.0f}" if perplexity >= 100 else f"{perplexity:.2f}"
