"""What the paper claims, and whether it holds here: each a sentence, and yes, no, or why nobody can tell yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from benchmarks.rendering import NO_REPAIR, Row

Tables = Mapping[str, Sequence[Row]]

LONGER = "medic 60 epochs"
"""The row of preset default with more epochs, which is no method beside it."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper with its test: None where a cell that it needs is missing."""

    text: str
    holds: Callable[[Tables], bool | None]


def judge(tables: Tables) -> list[dict[str, str]]:
    """Say of every claim whether it holds."""
    words = {True: "holds", False: "fails", None: "not measured"}
    return [{"claim": claim.text, "here": words[claim.holds(tables)]} for claim in CLAIMS]


def _curves(rows: Sequence[Row], name: str) -> dict[str, dict[float | None, float]] | None:
    """Means of a figure over seeds, by method and place; None where a cell is missing or there is none."""
    if not rows or not all(row.figures for row in rows):
        return None
    values: dict[str, dict[float | None, list[float]]] = {}
    for row in rows:
        values.setdefault(row.method, {}).setdefault(row.x, []).append(row.figures[name])
    return {method: {x: mean(found) for x, found in points.items()} for method, points in values.items()}


def _architectures(tables: Tables) -> bool | None:
    """At some temperature of each at which it is no more than ten points less accurate than at its best.

    One that does not is enough to tell, whatever is missing of the others.
    """
    rows = tables["figure8"]
    each = [_falls([row for row in rows if row.method == name]) for name in {row.method for row in rows}]
    if False in each:
        return False
    return None if None in each or not each else True


def _falls(rows: Sequence[Row]) -> bool | None:
    success, accuracy = (_curves(rows, name) for name in ("asr", "acc"))
    if success is None or accuracy is None:
        return None
    (left,), (right,) = success.values(), accuracy.values()
    return any(share <= 5 and right[x] >= max(right.values()) - 10 for x, share in left.items())


def _rises_with_weight(name: str) -> Callable[[Tables], bool | None]:
    """On the mean over temperatures; curves come in rising order of λ."""

    def holds(tables: Tables) -> bool | None:
        curves = _curves(tables["figure6"], name)
        if curves is None:
            return None
        return all(low <= high for low, high in pairwise(mean(points.values()) for points in curves.values()))

    return holds


def _both_criteria(tables: Tables) -> bool | None:
    """By what attack success and lost accuracy come to, at the best temperature of each."""
    curves = _curves(tables["figure7"], "der")
    if curves is None:
        return None
    best = {criteria: max(points.values()) for criteria, points in curves.items()}
    return best["both"] >= max(best["activation"], best["impact"])


def _tenth_of_the_data(tables: Tables) -> bool | None:
    """Wherever ten times as many images were tried, training from scratch on those is no more accurate."""
    curves = _curves(tables["figure3"], "acc")
    if curves is None:
        return None
    cloned, trained = curves["medic"], curves["scratch"]
    pairs = [(right, trained[10 * count]) for count, right in cloned.items() if count and 10 * count in trained]
    return all(right >= other for right, other in pairs) if pairs else None


def _best_on_clean_label(tables: Tables) -> bool | None:
    """Of the methods that cost five points of accuracy or less: in the paper MEDIC costs three."""
    others = (*NO_REPAIR, "scratch", LONGER)
    rows = [row for row in tables["table1"] if row.attack == "cleanlabel" and row.method not in others]
    success, accuracy, before = _curves(rows, "asr"), _curves(rows, "acc"), _accuracy_before(tables)
    if success is None or accuracy is None or before is None:
        return None
    kept = [method for method, points in accuracy.items() if points[None] >= before["cleanlabel"] - 5]
    return "medic" in kept and success["medic"][None] <= min(success[method][None] for method in kept)


def _accuracy_before(tables: Tables) -> dict[str, float] | None:
    """Of the suspects themselves, by attack."""
    rows = [row for row in tables["table1"] if row.method == "none"]
    return {row.attack: row.figures["acc"] for row in rows} if rows and all(row.figures for row in rows) else None


def _leaves_least(chosen: str) -> Callable[[Tables], bool | None]:
    """By the mean of attack success, among methods whose accuracy falls by two points at most on average.

    What accuracy gains on one suspect makes up for nothing on another.
    """

    def holds(tables: Tables) -> bool | None:
        rows, before = tables["table1"], _accuracy_before(tables)
        if before is None or not all(row.figures for row in rows):
            return None
        fell: dict[str, list[float]] = {}
        left: dict[str, list[float]] = {}
        for row in rows:
            if row.method not in NO_REPAIR:
                fell.setdefault(row.method, []).append(max(0.0, before[row.attack] - row.figures["acc"]))
                left.setdefault(row.method, []).append(row.figures["asr"])
        kept = {method: mean(left[method]) for method, each in fell.items() if mean(each) <= 2}
        return chosen in kept and kept[chosen] <= min(kept.values())

    return holds


CLAIMS: Sequence[Claim] = (
    Claim("Fig. 8: attack success of all three architectures falls to 5 % or less", _architectures),
    Claim("E.3: attack success rises with λ", _rises_with_weight("asr")),
    Claim("E.3: accuracy rises with λ", _rises_with_weight("acc")),
    Claim("E.6: both criteria of importance beat either alone", _both_criteria),
    Claim("Fig. 3: cloning needs at most a tenth of the data of training from scratch", _tenth_of_the_data),
    Claim(
        "Table 1: of all methods that look at the suspect and cost five points of accuracy at most, preset default"
        " leaves least of clean-label",
        _best_on_clean_label,
    ),
    Claim(
        "Goal: of all methods that cost two points of accuracy or less, preset default leaves least, on average",
        _leaves_least("medic"),
    ),
    Claim(
        "The same of preset default with 60 epochs, as many as preset authors has",
        _leaves_least(LONGER),
    ),
)
