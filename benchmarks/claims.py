"""What the paper claims, and whether it holds here: each a sentence, and yes, no, or why nobody can tell yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from benchmarks.rendering import Row

Tables = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper with its test: None where a cell that it needs is missing."""

    text: str
    holds: Callable[[Tables], bool | None]


def judge(tables: Tables) -> list[dict[str, str]]:
    """Say of every claim whether it holds."""
    words = {True: "holds", False: "fails", None: "not measured"}
    return [{"claim": claim.text, "here": words[claim.holds(tables)]} for claim in CLAIMS]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """Mean of a figure over seeds; None where one is missing."""
    if not rows or not all(row.figures for row in rows):
        return None
    return mean(row.figures[name] for row in rows)


def _architectures(tables: Tables) -> bool | None:
    curves = {row.method for row in tables["figure8"]}
    lowest = [
        min((row.figures["asr"] for row in tables["figure8"] if row.method == curve and row.figures), default=None)
        for curve in curves
    ]
    known = [value for value in lowest if value is not None]
    return all(value <= 5 for value in known) if len(known) == len(curves) == 3 else None


def _rises_with_weight(name: str) -> Callable[[Tables], bool | None]:
    def holds(tables: Tables) -> bool | None:
        rows = tables["figure6"]
        weights = list(dict.fromkeys(row.method for row in rows))  # in rising order
        means = [_mean([row for row in rows if row.method == weight], name) for weight in weights]
        if not means or any(value is None for value in means):
            return None
        return all(low <= high for low, high in pairwise(value for value in means if value is not None))

    return holds


def _both_criteria(tables: Tables) -> bool | None:
    """By what attack success and lost accuracy come to, at the best temperature of each."""
    best: dict[str, float] = {}
    for row in tables["figure7"]:
        if not row.figures:
            return None
        best[row.method] = max(best.get(row.method, 0.0), row.figures["der"])
    return best["both"] >= max(best["activation"], best["impact"]) if best else None


def _tenth_of_the_data(tables: Tables) -> bool | None:
    """The accuracy that cloning has on some images takes training from scratch ten times as many, or more."""
    curves: dict[str, dict[float, float]] = {}
    for row in tables["figure3"]:
        if row.figures and row.x is not None:
            curves.setdefault(row.method, {})[row.x] = row.figures["acc"]
    if {"medic", "scratch"} - curves.keys():
        return None
    pairs = [
        (cloned, curves["scratch"][10 * count])
        for count, cloned in curves["medic"].items()
        if 10 * count in curves["scratch"]
    ]
    return all(cloned >= trained for cloned, trained in pairs) if pairs else None


def _best_on_clean_label(tables: Tables) -> bool | None:
    rows = [row for row in tables["table1"] if row.attack == "cleanlabel" and row.method not in ("none", "scratch")]
    success = {
        method: _mean([row for row in rows if row.method == method], "asr") for method in {r.method for r in rows}
    }
    if not success or any(value is None for value in success.values()):
        return None
    known = {method: value for method, value in success.items() if value is not None}
    return known["medic"] <= min(known.values())


CLAIMS: Sequence[Claim] = (
    Claim("Fig. 8: attack success of all three architectures falls to 5 % or less", _architectures),
    Claim("E.3: attack success rises with λ", _rises_with_weight("asr")),
    Claim("E.3: accuracy rises with λ", _rises_with_weight("acc")),
    Claim("E.6: both criteria of importance beat either alone", _both_criteria),
    Claim("Fig. 3: cloning needs at most a tenth of the data of training from scratch", _tenth_of_the_data),
    Claim(
        "Table 1: of all methods that look at the suspect, MEDIC (preset default) leaves least of clean-label",
        _best_on_clean_label,
    ),
)
