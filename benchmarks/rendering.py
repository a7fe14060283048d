"""Tables as Markdown and as plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def _unaugmented(cleanlabel: float, sig: float, badnet: float) -> dict[str, float]:
    """Name the figures of Table 3."""
    return {"unaugmented-cleanlabel": cleanlabel, "unaugmented-sig": sig, "unaugmented-badnet": badnet}


PAPER_ASR: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "none": {"cleanlabel": 100, "sig": 94.5, "badnet": 100, "reflection": 34.2, "warp": 96.5, "signs-polygon": 100}
        | {"signs-filter": 100, "composite": 79.3, "latent": 98.5, "blending": 97.3}
        | _unaugmented(100, 97.8, 99.8),
        "fine_tune": {"cleanlabel": 89.2, "sig": 68.3, "badnet": 3.2, "reflection": 7.6, "warp": 13.2}
        | {"signs-polygon": 60.4, "signs-filter": 62.0, "composite": 37.1, "latent": 94.9}
        | _unaugmented(11.6, 3.5, 3.2),
        "fine_prune": {"cleanlabel": 99.6, "sig": 41.9, "badnet": 5.1, "reflection": 5.7, "warp": 4.7}
        | {"signs-polygon": 47.9, "signs-filter": 56.6, "composite": 36.4, "latent": 77.7, "blending": 81.6}
        | _unaugmented(11.2, 4.0, 3.6),
        "attention_distillation": {"cleanlabel": 95.9, "sig": 55.8, "badnet": 3.0, "reflection": 8.7, "warp": 6.1}
        | {"signs-polygon": 19.4, "signs-filter": 47.9, "composite": 38.0, "latent": 58.5, "blending": 74.0}
        | _unaugmented(8.2, 4.7, 4.1),
        "mode_connectivity": {"cleanlabel": 90.3, "sig": 56.3, "badnet": 2.7, "reflection": 4.6, "warp": 4.4}
        | {"signs-polygon": 39.4, "signs-filter": 72.2, "composite": 9.4, "latent": 86.7, "blending": 93.8}
        | _unaugmented(5.9, 0.5, 2.9),
        "adversarial_pruning mild": {"cleanlabel": 69.9, "sig": 73.9, "badnet": 2.3, "reflection": 5.0, "warp": 5.6}
        | {"signs-polygon": 47.3, "signs-filter": 19.5, "composite": 33.4, "latent": 24.4, "blending": 68.9}
        | _unaugmented(7.8, 3.9, 6.2),
        "medic authors": {"cleanlabel": 16.8, "sig": 1.5, "badnet": 3.6, "reflection": 6.2, "warp": 3.7}
        | {"signs-polygon": 13.2, "signs-filter": 17.8, "composite": 7.1, "latent": 4.3, "blending": 2.7}
        | _unaugmented(5.1, 5.1, 3.6),
    }
)
"""Attack success in percent, of the paper's own models: its bar chart of nine attacks, and its Tables 2 and 3."""


NO_REPAIR = ("none", "benign")
"""Rows of table 1 that are of no method."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        attack: Name of the suspect.
        method: What repaired it, or the name of a curve.
        seed: Of the repair.
        x: Where it stands on its curve; None where there are no curves.
        figures: Accuracy, attack success, recovery and DER in percent, how many images and triggered images they are
            of, seconds, epochs; empty where the cell is missing.
        cpu: Of one thread of which the seconds are; empty where nobody knows.
    """

    attack: str
    method: str
    seed: int
    x: float | None
    figures: Mapping[str, float]
    cpu: str = ""

    @property
    def label(self) -> str:
        """Method, and where on its curve."""
        return self.method if self.x is None else f"{self.method}, {self.x:g}"

    def columns(self) -> dict[str, str | float]:
        """Return what a CSV file has of it."""
        return {"attack": self.attack, "method": self.label, "seed": self.seed, **self.figures}


PAPER_EPOCHS: Mapping[str, int] = MappingProxyType(
    {"fine_tune": 30, "fine_prune": 31, "attention_distillation": 40}
    | {"mode_connectivity": 240, "adversarial_pruning": 100}
    | {"adversarial_pruning mild": 100, "medic authors": 60}
)
"""Of Appendix E.5."""


@dataclass(frozen=True)
class Costs:
    """What each method takes, on the processor on which most methods were timed, preset ``default`` among them."""

    cpu: str
    rows: Sequence[Mapping[str, str | float | None]]


def costs(rows: Sequence[Row]) -> Costs:
    """Say for each method how many epochs a repair takes, the paper's, and its median seconds on one processor.

    Seconds are what its cores worked; ``times_medic`` is their ratio to those of preset ``default``.
    """
    measured = [row for row in rows if row.figures and row.method not in NO_REPAIR]
    timed = [row for row in measured if row.cpu and "seconds" in row.figures]
    methods = {cpu: {row.method for row in timed if row.cpu == cpu} for cpu in sorted({row.cpu for row in timed})}
    cpu = max(methods, key=lambda each: ("medic" in methods[each], len(methods[each])), default="")
    epochs: dict[str, float] = {}
    for row in measured:
        epochs[row.method] = max(epochs.get(row.method, 0.0), row.figures["epochs"])
    seconds: dict[str, list[float]] = {}
    for row in timed:
        if row.cpu == cpu:
            seconds.setdefault(row.method, []).append(row.figures["seconds"])
    medians = {method: median(each) for method, each in seconds.items()}
    ratios = {method: round(each / medians["medic"], 2) for method, each in medians.items() if "medic" in medians}
    found = [
        {
            "method": method,
            "epochs": count,
            "paper_epochs": PAPER_EPOCHS.get(method),
            "seconds": medians.get(method),
            "times_medic": ratios.get(method),
            "cells": len(seconds.get(method, ())),
        }
        for method, count in epochs.items()
    ]
    return Costs(cpu, found)


def costs_markdown(found: Costs) -> str:
    """Write what ``costs`` says as a table."""
    head = (
        "# Appendix E.5: what a repair costs\n\n"
        "2,500 images, one thread; seconds are medians over cells that were measured on the same kind of processor: "
        f"{found.cpu or 'none yet'}.\n\n"
        "| method | epochs | epochs in the paper | seconds | × `default` | cells |\n" + "|---" * 6 + "|\n"
    )
    lines = ["| " + " | ".join(map(_entry, row.values())) + " |" for row in found.rows]
    return head + "\n".join(lines) + "\n"


def _entry(value: str | float | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:g}"


def claims_markdown(claims: Sequence[Mapping[str, str]]) -> str:
    """Write what ``benchmarks.claims.judge`` says as a table."""
    lines = ["| claim | here |", "|---|---|", *(f"| {each['claim']} | {each['here']} |" for each in claims)]
    return "# What the paper claims, and we\n\n" + "\n".join(lines) + "\n"


def markdown(title: str, rows: Sequence[Row], *, axis: str | None) -> str:
    """Write methods down, attacks across; each cell is a mean over its seeds."""
    attacks = list(dict.fromkeys(row.attack for row in rows))
    seeds = max(Counter((row.label, row.attack) for row in rows).values(), default=0)
    head = f"# {title}\n\nAccuracy / attack success / recovery in percent, on test images; seeds of a cell: {seeds}."
    head += f" After a comma: {axis}." if axis else " In brackets: attack success in the paper, on its own models."
    lines = [head, "", "| | " + " | ".join(attacks) + " |", "|" + "---|" * (len(attacks) + 1)]
    for label in dict.fromkeys(row.label for row in rows):
        cells = [_cell([row for row in rows if (row.label, row.attack) == (label, attack)]) for attack in attacks]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.figures]
    if not rows:
        return "–"
    if not measured:
        return "missing" + _paper(rows[0])
    text = " / ".join(f"{mean(row.figures[name] for row in measured):.1f}" for name in ("acc", "asr", "ra"))
    if len(measured) < len(rows):
        text += f" ({len(measured)} of {len(rows)} seeds)"
    return text + _paper(rows[0])


def _paper(row: Row) -> str:
    if row.attack == "latent":  # of ours; the paper's is ``published-latent``
        return ""
    published = PAPER_ASR.get(row.method, {}).get(row.attack.removeprefix("published-"))
    return "" if published is None or row.x is not None else f" ({published:g})"


def draw(path: Path, title: str, rows: Sequence[Row], *, axis: str | None) -> None:
    """Draw accuracy and attack success: bars by attack and method, or curves."""
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "medic"}):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        figure.suptitle(title)
        for panel, (name, label) in zip(
            figure.subplots(1, 2), {"acc": "accuracy, %", "asr": "attack success, %"}.items(), strict=True
        ):
            (_curves if axis else _bars)(panel, rows, name)
            panel.set_ylabel(label)
            panel.set_xlabel(axis or "")
        figure.axes[-1].legend(fontsize=7)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _curves(panel: Axes, rows: Sequence[Row], name: str) -> None:
    several = len({row.attack for row in rows}) > 1
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        key = f"{row.attack}, {row.method}" if several and row.method not in row.attack else row.method
        curves.setdefault(key, {}).setdefault(row.x or 0.0, []).append(row.figures[name])
    for key, points in curves.items():
        places = sorted(points)
        panel.plot(places, [mean(points[place]) for place in places], marker="o", label=key)


def _bars(panel: Axes, rows: Sequence[Row], name: str) -> None:
    attacks = list(dict.fromkeys(row.attack for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    for number, method in enumerate(methods):
        heights = {
            place: mean(found)
            for place, attack in enumerate(attacks)
            if (found := [row.figures[name] for row in rows if (row.attack, row.method) == (attack, method)])
        }
        places = [place + 0.8 * (number - len(methods) / 2) / len(methods) for place in heights]
        panel.bar(places, list(heights.values()), 0.8 / len(methods), align="edge", label=method)
    panel.set_xticks(range(len(attacks)), attacks)
