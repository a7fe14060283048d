"""``python -m benchmarks.tables``: the paper's tables and figures, by our code and by its rivals, on CIFAR-10.

A table is a list of repairs. Each is measured once on ``test-1000`` and kept in ``benchmarks/results/cells.csv``, from
which tables and plots are written again after every cell; several processes may share the work. What is missing, for
want of time or of a suspect, is said to be missing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import torch

from benchmarks.cells import BENIGN, UNTOUCHED, Cell, Sheet, key_of
from benchmarks.claims import LONGER, judge
from benchmarks.machine import held, replaced, write_json
from benchmarks.rendering import Row, claims_markdown, costs, costs_markdown, draw, markdown
from benchmarks.suspects import PUBLISHED, RECIPES, architecture_of, unseen_images
from medic_core.data import EPOCHS

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
COLUMNS = ("attack", "method", "acc", "asr", "ra", "der", "n", "seed", "seconds", "triggered_n")
EMBEDDED = ("table1", "published", "epochs", "claims")
"""Tables that the README shows."""
FIGURES = {
    **{"acc": "accuracy", "asr": "attack_success", "ra": "recovery", "der": "der"},
    **{"n": "n", "triggered_n": "triggered_n", "seconds": "seconds", "epochs": "epochs"},
}
SHOWN = ("suspect", "settings", "seed", "clean", "accuracy", "attack_success", "recovery", "seconds")

Profile = Literal["quick", "full"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "none": UNTOUCHED,
    "benign": BENIGN,  # what the trigger does by itself, to a model without a backdoor
    "medic": {},
    LONGER: {"epochs": 60},  # as many as preset authors
    "medic authors": {"preset": "authors"},
    "fine_tune": {"method": "fine_tune"},
    "fine_prune": {"method": "fine_prune"},
    "attention_distillation": {"method": "attention_distillation"},
    "mode_connectivity": {"method": "mode_connectivity"},
    "adversarial_pruning": {"method": "adversarial_pruning"},
    "adversarial_pruning mild": {  # with the ε, rate and threshold of MEDIC's authors; docs/rivals.md has the rest
        "method": "adversarial_pruning",
        "perturbation": 0.2,
        "learning_rate": 0.1,
        "threshold": 0.05,
    },
    "scratch": {"method": "scratch"},
    "distill": {"method": "distill"},
    "head_shift": {"method": "head_shift"},
    "head_shift 0.1": {"method": "head_shift", "shift_weight": 0.1},  # as its authors' README has it
    "shared_adversarial": {"method": "shared_adversarial"},
    "lipschitz_pruning": {"method": "lipschitz_pruning"},
}
QUICK = ("badnet", "cleanlabel", "sig", "warp")
RELEASED = tuple(PUBLISHED)
ATTACKS = (*QUICK, "reflection", "composite", "latent", "signs-polygon", "signs-filter")


@dataclass(frozen=True)
class Entry:
    """A cell in its table.

    Attributes:
        method: Label of its row, or of its curve.
        cell: What is measured.
        x: Where it stands on a curve; None in a table.
    """

    method: str
    cell: Cell
    x: float | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper.

    Attributes:
        title: With its place in the paper.
        entries: What it holds for a profile and a seed, the most wanted first.
        axis: What ``x`` is, where there are curves.
    """

    title: str
    entries: Callable[[Profile, int], Iterator[Entry]]
    axis: str | None = None


def apart(suspect: str, settings: Mapping[str, Any], seed: int, per_class: int | None = None) -> Cell:
    """Return the cell of a seed, on a model of the zoo of the next one.

    Its models were trained under seed 0: a clone under the same seed begins with the suspect's own first weights, which
    no defender has.
    """
    return Cell(suspect, settings, seed + (suspect in RECIPES), per_class)


def compare(attacks: Mapping[Profile, Sequence[str]]) -> Callable[[Profile, int], Iterator[Entry]]:
    """Every attack by every method."""

    def entries(profile: Profile, seed: int) -> Iterator[Entry]:
        for attack in attacks[profile]:
            for method, settings in METHODS.items():
                yield Entry(method, apart(attack, settings, seed))

    return entries


def by_amount(profile: Profile, seed: int) -> Iterator[Entry]:
    """1, 5 and 10 % of CIFAR-10's training images."""
    attacks = (
        ("cleanlabel", "badnet") if profile == "quick" else ("cleanlabel", "sig", "badnet", "composite", "reflection")
    )
    for preset in ("default", "authors"):
        for attack in attacks:
            for percent in (1, 5, 10):
                cell = apart(attack, {} if preset == "default" else {"preset": preset}, seed, _per_class(500 * percent))
                yield Entry(f"medic {preset}", cell, percent)


def by_weight(profile: Profile, seed: int) -> Iterator[Entry]:
    """λ and τ of preset ``authors`` on clean-label."""
    for weight in (1.0, 10.0, 100.0) if profile == "quick" else (1.0, 3.0, 10.0, 30.0, 100.0):
        for temperature in (1.0, 5.0, 10.0) if profile == "quick" else (1.0, 2.0, 3.0, 5.0, 7.0, 10.0):
            chosen = {"preset": "authors", "cloning_weight": weight, "temperature": temperature}
            yield Entry(f"λ = {weight:g}", apart("cleanlabel", chosen, seed), temperature)


def by_criteria(profile: Profile, seed: int) -> Iterator[Entry]:
    """One criterion of importance or both, with an impact relative to the sample's, so that it has an effect."""
    for temperature in (1.0, 3.0, 7.0) if profile == "quick" else (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
        for criteria in ("both", "activation", "impact"):
            chosen = {"preset": "authors", "criteria": criteria, "impact": "relative", "temperature": temperature}
            chosen["normalize_importance"] = True  # else λ would mean six to sixteen times as much for one alone
            yield Entry(criteria, apart("cleanlabel", chosen, seed), temperature)


def by_architecture(profile: Profile, seed: int) -> Iterator[Entry]:
    """BadNet in three other networks, by preset ``authors``."""
    for temperature in (1.0, 3.0, 5.0) if profile == "quick" else (1.0, 2.0, 3.0, 5.0, 7.0, 10.0):
        for architecture in ("vgg11", "mobilenet", "resnet16"):
            chosen = {"preset": "authors", "learning_rate": 1e-3, "temperature": temperature}  # the rate of E.7
            yield Entry(architecture, apart(f"badnet-{architecture}", chosen, seed), temperature)


def by_need(profile: Profile, seed: int) -> Iterator[Entry]:
    """How much clean data cloning needs, and how much training from scratch."""
    for images in (250, 500, 2500) if profile == "quick" else (100, 250, 500, 1000, 2500, 5000):
        yield Entry("medic", apart("badnet", {}, seed, _per_class(images)), images)
    for images in (2500, 5000, 17500) if profile == "quick" else (500, 1000, 2500, 5000, 10_000, 17500):
        yield Entry("scratch", apart("badnet", {"method": "scratch"}, seed, _per_class(images)), images)


def by_duration(_: Profile, seed: int) -> Iterator[Entry]:
    """What fewer epochs give, and more, than the ``EPOCHS`` of preset ``default`` on 2,500 images."""
    for attack in ("badnet", "cleanlabel"):
        for epochs in (5, 10, 20, EPOCHS, 60):
            yield Entry("medic", apart(attack, {} if epochs == EPOCHS else {"epochs": epochs}, seed), epochs)


def _per_class(images: int) -> int | None:
    """None for what the paper gives, of which some classes have more than others."""
    return None if images == 2500 else images // 10


TABLES: Mapping[str, Table] = {
    "table1": Table("Table 1: every attack, every method", compare({"quick": QUICK, "full": ATTACKS})),
    "published": Table(
        "Table 1 on models that the paper's authors released",
        compare({"quick": RELEASED, "full": RELEASED}),
    ),
    "table4": Table("Table 4: how much clean data", by_amount, "clean images, % of the training set"),
    "figure7": Table("Figure 7: criteria of importance, clean-label, relative impact", by_criteria, "temperature τ"),
    "figure6": Table("Figure 6: λ and τ, clean-label", by_weight, "temperature τ"),
    "figure3": Table("Figure 3: clean data needed, BadNet", by_need, "clean images"),
    "duration": Table("Preset default: what fewer epochs give and more", by_duration, "epochs"),
    "figure8": Table("Figure 8: architectures, BadNet", by_architecture, "temperature τ"),
    "architectures": Table(
        "Every method in other architectures, BadNet",
        compare({"quick": (), "full": ("badnet-resnet16", "badnet-vgg11", "badnet-mobilenet")}),
    ),
    "table2": Table(
        "Table 2: activations of benign and triggered images held together",
        compare({"quick": (), "full": ("blending",)}),
    ),
    "table3": Table(
        "Table 3: attacks trained without augmentation",
        compare({"quick": (), "full": ("unaugmented-cleanlabel", "unaugmented-sig", "unaugmented-badnet")}),
    ),
}


def rows_of(table: Table, sheet: Sheet, profile: Profile, seeds: Sequence[int]) -> list[Row]:
    """Return the rows of a table, those of missing cells without figures."""
    kept = {key_of(row): row for row in sheet.rows()}
    entries = [entry for seed in seeds for entry in table.entries(profile, seed)]
    return [_row(entry, kept.get(entry.cell.key(), {})) for entry in entries]


def _row(entry: Entry, kept: Mapping[str, str]) -> Row:
    figures = {short: float(kept[name]) for short, name in FIGURES.items() if kept.get(name)}
    cpu = kept["cpu"] if kept.get("threads") == "1" else ""  # of more threads seconds would be others
    return Row(entry.cell.suspect, entry.method, entry.cell.seed, entry.x, figures, cpu)


def write(name: str, rows: Sequence[Row], results: Path = RESULTS) -> None:
    """Write a table as CSV, JSON, Markdown and a plot."""
    table, measured = TABLES[name], [row for row in rows if row.figures]
    with (results / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row.columns() for row in measured)
    missing = [f"{row.attack}: {row.label}, seed {row.seed}" for row in rows if not row.figures]
    found = {"title": table.title, "rows": [row.columns() for row in measured], "missing": missing}
    write_json(results / f"{name}.json", found)
    (results / f"{name}.md").write_text(markdown(table.title, rows, axis=table.axis))
    if measured:
        draw(results / f"{name}.png", table.title, measured, axis=table.axis)


def shown(name: str, sheet: Sheet, results: Path = RESULTS) -> str:
    """Return the lines of a table as the README has them: what is written of it, or its ``quick`` profile of seed 0."""
    if name in TABLES:
        text = markdown("", rows_of(TABLES[name], sheet, "quick", [0]), axis=TABLES[name].axis)
    else:
        text = (results / f"{name}.md").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def embed(text: str, name: str, lines: str) -> str:
    """Put a table between its marks in a text.

    Raises:
        ValueError: The text has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, behind = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no marks {begin.strip()} … {end.strip()}")
    return f"{before}{begin}{lines}{end}{behind}"


def write_costs(rows: Sequence[Row], results: Path = RESULTS) -> None:
    """Write what each method costs, as CSV, JSON and Markdown."""
    found = costs(rows)
    with (results / "epochs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("method", "epochs", "paper_epochs", "seconds", "times_medic", "cells"))
        writer.writeheader()
        writer.writerows(found.rows)
    kept = {"title": "Appendix E.5: what a repair costs", "cpu": found.cpu, "rows": found.rows}
    write_json(results / "epochs.json", kept)
    (results / "epochs.md").write_text(costs_markdown(found))


def write_all(sheet: Sheet, seeds: Sequence[int]) -> None:
    """Write all results, and of seed 0 into the README what it shows; one process at a time."""
    with held(str(RESULTS.resolve())):  # else rows that were read before another's would be written after them
        write_results(sheet, seeds)
        if list(seeds) == [0]:
            with replaced(README) as fresh:
                text = README.read_text()
                for name in EMBEDDED:
                    text = embed(text, name, shown(name, sheet))
                fresh.write_text(text)


def write_results(sheet: Sheet, seeds: Sequence[int], results: Path = RESULTS) -> None:
    """Write every table whole, the claims and the costs.

    Claims are judged by the ``quick`` profile, since all cells of ``full`` take days.
    """
    tables = {name: rows_of(table, sheet, "full", seeds) for name, table in TABLES.items()}
    for name, rows in tables.items():
        write(name, rows, results)
    claims = judge({name: rows_of(table, sheet, "quick", seeds) for name, table in TABLES.items()})
    write_json(results / "claims.json", {"profile": "quick", "seeds": seeds, "claims": claims})
    (results / "claims.md").write_text(claims_markdown(claims))
    compared = {
        (row.attack, row.method, row.seed): row
        for name in ("table1", "published")
        for row in tables[name]
        if architecture_of(row.attack) == architecture_of("badnet")  # the others' images are of other size and number
    }
    write_costs(list(compared.values()), results)


def fill(
    table: Table, sheet: Sheet, profile: Profile, seed: int, methods: Sequence[str]
) -> Iterator[Mapping[str, str]]:
    """Measure the cells of a table that are missing and whose models are at hand; yield their rows."""
    for entry in table.entries(profile, seed):
        if entry.cell.is_at_hand() and (not methods or entry.method in methods):
            row = sheet.fill(entry.cell, unseen_images(entry.cell.suspect))
            if row:
                yield row


@click.command()
@click.option("--only", type=click.Choice(list(TABLES)), multiple=True, help="By default all.")
@click.option(
    "--profile", type=click.Choice(["quick", "full"]), default="quick", show_default=True, help="What to measure."
)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas; the zoo's models get the next.")
@click.option("--method", "methods", multiple=True, help="Labels of rows or curves to measure; by default all.")
@click.option("--threads", default=1, show_default=True)
@click.option("--render", is_flag=True, help="Measure nothing, write what is kept.")
def main(
    only: tuple[str, ...], profile: Profile, seeds: str, methods: tuple[str, ...], threads: int, *, render: bool
) -> None:
    """Measure every cell that is missing, and write the tables."""
    torch.set_flush_denormal(True)  # as a trainer does
    torch.set_num_threads(threads)
    sheet, chosen = Sheet(RESULTS / "cells.csv"), [int(seed) for seed in seeds.split(",")]
    written = sorted({0, *chosen})  # what is kept in the repository has seed 0
    for name in () if render else only or TABLES:
        for seed in chosen:
            for row in fill(TABLES[name], sheet, profile, seed, methods):
                click.echo("  ".join(str(row[column]) for column in SHOWN))
                write_all(sheet, written)
    write_all(sheet, written)


if __name__ == "__main__":
    main()
