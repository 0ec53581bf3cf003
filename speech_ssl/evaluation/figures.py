"""Figures of a training run. Needs the `train` extra.

python -m speech_ssl.evaluation.figures RUN_FOLDER OUT.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "contrastive": "contrastive loss (nats)",
    "accuracy": "contrastive accuracy",
    "code_perplexity": "code perplexity",
    "effective_rank": "effective rank of the outputs",
    "explained": "share of the targets' variance that is predicted",
    "information": "nats below the codes' entropy",
}


def read_log(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of a run's `log.jsonl` by kind. Raises ValueError if the file is not a run's log."""
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "valid": []}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries.setdefault(entry["kind"], []).append(entry)
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: not an entry of a run's log") from None
    return entries


def draw_curves(run: Path, out: Path) -> None:
    """Draw loss, accuracy, code perplexity and effective rank of a run, in training and held out, with the
    accuracy that guessing would reach."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(run / "log.jsonl")
    if not entries["train"] and not entries["valid"]:
        raise ValueError(f"{run / 'log.jsonl'} holds no numbers yet")
    shown = [name for name in PANELS if any(name in e for e in entries["train"])] or ["loss"]
    figure = Figure(figsize=(5.0 * min(2, len(shown)), 3.4 * ((len(shown) + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = (len(shown) + 1) // 2
    for place, name in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, min(2, len(shown)), place)
        for kind, style in (("train", {"alpha": 0.5}), ("valid", {"marker": "o", "markersize": 3})):
            points = [(e["step"], e[name]) for e in entries[kind] if name in e]
            if points:
                label = {"train": "training", "valid": "held out"}[kind]
                axes.plot(*zip(*points, strict=True), label=label, **style)
        if name == "accuracy" and (
            chance := [(e["step"], e["chance"]) for e in entries["valid"] if "chance" in e]
        ):
            axes.plot(*zip(*chance, strict=True), label="guessing, held out", color="gray", linestyle=":")
        axes.set_title(PANELS.get(name, name), fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m speech_ssl.evaluation.figures RUN_FOLDER OUT.png", file=sys.stderr)
        return 2
    try:
        draw_curves(Path(arguments[0]), Path(arguments[1]))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
