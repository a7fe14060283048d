from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from benchmarks import cells
from benchmarks.cells import BENIGN, COLUMNS, UNTOUCHED, Cell, Sheet
from benchmarks.claims import judge
from benchmarks.rendering import Row, costs, markdown
from benchmarks.suspects import PUBLISHED, RECIPES, ZOO, architecture_of, digest_of
from benchmarks.tables import EMBEDDED, METHODS, README, RESULTS, TABLES, embed, rows_of, shown, write, write_results
from medic_core.config import Preprocessing, RemovalConfig
from medic_core.data import EPOCHS, Batches


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some classes have less than 250 of the 2,500 images, so that 250 of each are fewer."""
    amounts = {None: 2500, 250: 2454}

    def clean_images(name: str, per_class: int | None) -> Batches:
        count = 100 if name.startswith("signs-") else amounts.get(per_class, 10 * (per_class or 0))
        return Batches(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.zeros(count).long(), Preprocessing())

    monkeypatch.setattr(cells, "clean_images", clean_images)


def row(cell: Cell, **figures: object) -> dict[str, object]:
    return {**cell.columns(), "seed": cell.seed} | figures


MEASURED = {"accuracy": "88.0", "attack_success": "2.0", "recovery": "87.0", "der": "98.5", "n": 1000}
MEASURED |= {"triggered_n": 914, "seconds": 60, "epochs": 20}


def test_a_kept_cell_is_found_again_and_another_seed_setting_suspect_or_amount_is_another_cell(tmp_path: Path) -> None:
    sheet, cell = Sheet(tmp_path / "cells.csv"), Cell("badnet", {"temperature": 2.0}, seed=1, per_class=50)
    assert sheet.find(cell) is None
    sheet.keep(row(cell, accuracy="88.00"))
    found = sheet.find(cell)
    assert found is not None
    assert found["accuracy"] == "88.00"
    assert set(found) == set(COLUMNS)
    for other in (
        Cell("sig", {"temperature": 2.0}, seed=1, per_class=50),
        Cell("badnet", {"temperature": 3.0}, seed=1, per_class=50),
        Cell("badnet", {"temperature": 2.0}, seed=2, per_class=50),
        Cell("badnet", {"temperature": 2.0}, seed=1),
        Cell("badnet", UNTOUCHED),
    ):
        assert sheet.find(other) is None


def test_a_row_of_other_weights_of_the_same_name_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet, cell = Sheet(tmp_path / "cells.csv"), Cell("sig")
    sheet.keep(row(cell, accuracy="80.00"))
    assert sheet.find(cell) is not None
    monkeypatch.setattr(cells, "digest_of", lambda _: "of another training")
    assert sheet.find(cell) is None


def test_a_row_of_another_model_without_a_backdoor_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet, cell = Sheet(tmp_path / "cells.csv"), Cell("badnet", BENIGN)
    sheet.keep(row(cell, accuracy="80.00"))
    assert sheet.find(cell) is not None
    monkeypatch.setattr(cells, "digest_of", lambda name: digest_of(name) if name == "badnet" else "of another training")
    assert sheet.find(cell) is None


def test_a_cell_waits_for_every_model_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"signs-filter"}
    monkeypatch.setattr(cells, "weights_of", lambda name: ZOO if name in known else tmp_path / "none")
    assert Cell("signs-filter", {"method": "fine_tune"}).is_at_hand()
    assert not Cell("signs-filter", BENIGN).is_at_hand()
    known.add("signs-clean")
    assert Cell("signs-filter", BENIGN).is_at_hand()


def test_a_cell_that_another_process_is_about_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet, cell, measured = Sheet(tmp_path / "cells.csv"), Cell("badnet"), []

    def measure(wanted: Cell, _: object) -> dict[str, object]:
        measured.append(wanted)
        if len(measured) == 1:
            assert sheet.fill(cell, None) is None  # as another process would, at the same time
        return row(wanted)

    monkeypatch.setattr(cells, "measure", measure)
    assert sheet.fill(cell, None) is not None
    assert sheet.fill(cell, None) is None  # kept by now
    assert measured == [cell]


@pytest.mark.parametrize("name", TABLES)
def test_no_clone_begins_where_a_suspect_of_the_zoo_began(name: str) -> None:
    kept = {each["name"]: each["seed"] for each in json.loads((ZOO / "zoo.json").read_text())}
    for entry in TABLES[name].entries("full", 0):
        if entry.cell.suspect in kept:
            assert entry.cell.seed != kept[entry.cell.suspect]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_cell_of_a_table_is_one_of_a_kind_and_can_be_asked_for(name: str, profile: str) -> None:
    entries = list(TABLES[name].entries(profile, 0))
    assert len({entry.cell.key() for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.cell.suspect in RECIPES or entry.cell.suspect in PUBLISHED
        assert architecture_of(entry.cell.suspect).num_classes == 10


@pytest.mark.parametrize(("name", "x"), [("table4", 5), ("figure3", 2500)])
def test_what_the_paper_gives_a_defender_is_the_same_in_every_table(name: str, x: int) -> None:
    compared = {entry.cell.key() for entry in TABLES["table1"].entries("full", 0)}
    amounts = [entry for entry in TABLES[name].entries("full", 0) if entry.x == x]
    assert amounts
    assert {entry.cell.key() for entry in amounts} <= compared


def test_every_removal_method_but_the_search_is_compared() -> None:
    compared = {settings.get("method", "medic") for settings in METHODS.values()} - {"none", "benign"}
    assert compared == {config.method for config in RemovalConfig.__args__} - {"auto"}


def test_what_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    sheet = Sheet(tmp_path / "cells.csv")
    first, *others = TABLES["table1"].entries("quick", 0)
    sheet.keep(row(first.cell, **MEASURED))
    write("table1", rows_of(TABLES["table1"], sheet, "quick", [0]), tmp_path)
    with (tmp_path / "table1.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert kept == [
        {"attack": first.cell.suspect, "method": first.method, "acc": "88.0", "asr": "2.0", "ra": "87.0"}
        | {"der": "98.5", "n": "1000.0", "triggered_n": "914.0", "seed": "0", "seconds": "60.0"}
    ]
    assert len(json.loads((tmp_path / "table1.json").read_text())["missing"]) == len(others)
    text = (tmp_path / "table1.md").read_text()
    assert text.count("missing") == len(others)
    assert "88.0 / 2.0 / 87.0" in text
    assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG")


def test_the_results_that_are_kept_are_what_is_written_of_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.tables.draw", lambda *_args, **_more: None)  # a plot may differ by its fonts
    write_results(Sheet(RESULTS / "cells.csv"), [0], tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {f"{name}.{kind}" for name in TABLES for kind in ("csv", "json", "md")} < set(written)
    assert written == {name: (RESULTS / name).read_text() for name in written}


def test_a_row_is_of_the_epochs_that_were_trained_whatever_the_default_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("badnet", {})
    assert cell.key() == Cell("badnet", {"epochs": EPOCHS}).key()
    before = cell.key()
    monkeypatch.setattr("medic_core.data.EPOCHS", 2 * EPOCHS)
    assert cell.key() != before


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_readme_shows_the_tables_that_are_kept(name: str) -> None:
    text = README.read_text()
    assert embed(text, name, shown(name, Sheet(RESULTS / "cells.csv"))) == text


def test_a_table_is_embedded_between_its_marks_alone() -> None:
    text = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n"
    found = embed(text, "one", "| new |\n| 2 |")
    assert found == text.replace("old", "| new |\n| 2 |")
    with pytest.raises(ValueError, match="three"):
        embed(text, "three", "")


def test_a_cell_of_several_seeds_is_their_mean() -> None:
    figures = [{"acc": 80.0, "asr": 1.0, "ra": 79.0}, {"acc": 82.0, "asr": 3.0, "ra": 80.0}]
    rows = [Row("badnet", "medic", seed, None, found) for seed, found in enumerate(figures)]
    assert "81.0 / 2.0 / 79.5" in markdown("A table", rows, axis=None)


def test_a_cell_that_lacks_seeds_says_so() -> None:
    rows = [Row("badnet", "medic", 0, None, {"acc": 80.0, "asr": 1.0, "ra": 79.0}), Row("badnet", "medic", 1, None, {})]
    assert "80.0 / 1.0 / 79.0 (1 of 2 seeds)" in markdown("A table", rows, axis=None)


def test_what_a_method_costs_is_the_median_of_its_cells_on_one_processor_beside_the_papers_epochs() -> None:
    taken = {"medic": (100.0, 200.0, 900.0), "fine_tune": (50.0, 150.0)}
    rows = [
        Row("badnet", method, seed, None, {"seconds": each, "epochs": 30.0}, "this one")
        for method, seconds in taken.items()
        for seed, each in enumerate(seconds)
    ]
    rows += [
        Row("sig", "distill", 1, None, {"seconds": 9.0, "epochs": 60.0}, "a better known one"),
        Row("sig", "medic", 0, None, {}),
        Row("sig", "none", 0, None, {"seconds": 0.0, "epochs": 0.0}, "this one"),
        Row("sig", "fine_tune", 0, None, {"seconds": 4.0, "epochs": 30.0}, "a faster one"),
        Row("sig", "fine_tune", 1, None, {"epochs": 30.0}, "this one"),
        Row("sig", "distill", 0, None, {"seconds": 4.0, "epochs": 60.0}),
    ]
    found = costs(rows)
    cloned, tuned, distilled = found.rows
    assert found.cpu == "this one"
    assert (cloned["seconds"], cloned["times_medic"], cloned["cells"], cloned["paper_epochs"]) == (200.0, 1.0, 3, None)
    assert (tuned["seconds"], tuned["times_medic"], tuned["cells"], tuned["paper_epochs"]) == (100.0, 0.5, 2, 30)
    assert (distilled["epochs"], distilled["seconds"], distilled["times_medic"], distilled["cells"]) == (
        60,
        None,
        None,
        0,
    )


def test_what_fails_to_be_written_leaves_what_was_kept(tmp_path: Path) -> None:
    sheet, cell = Sheet(tmp_path / "cells.csv"), Cell("badnet")
    sheet.keep(row(cell, accuracy="88.00"))
    before = sheet.path.read_bytes()
    with pytest.raises(ValueError, match="unknown"):
        sheet.keep(row(Cell("sig"), unknown="column"))
    assert sheet.path.read_bytes() == before
    sheet.keep(row(Cell("sig")))
    assert len(sheet.rows()) == 2


def test_a_row_of_the_same_cell_takes_the_place_of_the_former(tmp_path: Path) -> None:
    sheet, cell = Sheet(tmp_path / "cells.csv"), Cell("badnet")
    for accuracy, other in (("88.00", Cell("sig")), ("89.00", Cell("badnet", seed=1))):
        sheet.keep(row(cell, accuracy=accuracy))
        sheet.keep(row(other))
    found = sheet.find(cell)
    assert found is not None
    assert found["accuracy"] == "89.00"
    assert len(sheet.rows()) == 3


@pytest.mark.parametrize(
    ("rival", "here"), [((79.0, 1.0), "fails"), ((77.0, 1.0), "holds"), ((79.0, 3.0), "holds"), (None, "not measured")]
)
def test_the_goal_is_about_methods_that_cost_two_points_or_less(rival: tuple[float, float] | None, here: str) -> None:
    rows = [
        Row("badnet", method, 0, None, {"acc": found[0], "asr": found[1]} if found else {})
        for method, found in {"none": (80.0, 100.0), "medic": (79.0, 2.0), "fine_tune": rival}.items()
    ]
    assert verdicts(table1=rows)["Goal"] == here


def curve(method: str, points: dict[float, float], figure: str, seed: int = 0) -> list[Row]:
    return [Row("cleanlabel", method, seed, x, {"acc": 80.0, figure: y} if y >= 0 else {}) for x, y in points.items()]


MISSING = -1.0


def verdicts(**tables: list[Row]) -> dict[str, str]:
    everything = {name: tables.get(name, []) for name in TABLES}
    return {each["claim"].split(":")[0]: each["here"] for each in judge(everything)}


def test_a_claim_without_its_cells_is_not_judged() -> None:
    assert set(verdicts().values()) == {"not measured"}


@pytest.mark.parametrize(("worst", "here"), [(4.0, "holds"), (6.0, "fails"), (MISSING, "not measured")])
def test_the_claim_on_architectures_is_about_the_best_temperature_of_each(worst: float, here: str) -> None:
    rows = curve("vgg11", {1: 50.0, 3: 2.0}, "asr") + curve("mobilenet", {1: 1.0, 3: 9.0}, "asr")
    rows += curve("resnet16", {1: worst, 3: 9.0}, "asr")
    assert verdicts(figure8=rows)["Fig. 8"] == here


def test_one_architecture_that_keeps_the_attack_is_enough_to_tell_whatever_is_missing_of_others() -> None:
    rows = curve("resnet16", {1: 6.0, 3: 9.0}, "asr") + curve("vgg11", {1: MISSING, 3: 1.0}, "asr")
    assert verdicts(figure8=rows)["Fig. 8"] == "fails"


@pytest.mark.parametrize(("seeds", "here"), [((60.0, 4.0), "fails"), ((4.0, 5.0), "holds")])
def test_a_claim_is_about_the_mean_of_seeds_and_not_the_best(seeds: tuple[float, float], here: str) -> None:
    rows = [row for seed, asr in enumerate(seeds) for row in curve("vgg11", {1: asr}, "asr", seed)]
    assert verdicts(figure8=rows)["Fig. 8"] == here


@pytest.mark.parametrize(("accuracy", "here"), [(78.0, "holds"), (60.0, "fails")])
def test_an_architecture_that_is_wrecked_is_not_repaired(accuracy: float, here: str) -> None:
    points = {1.0: {"acc": 85.0, "asr": 40.0}, 10.0: {"acc": accuracy, "asr": 1.0}}
    rows = [Row("badnet-vgg11", "vgg11", 0, x, figures) for x, figures in points.items()]
    assert verdicts(figure8=rows)["Fig. 8"] == here


@pytest.mark.parametrize("order", [(90.0, 90.0, 79.0), (79.0, 90.0, 90.0)])
def test_a_claim_does_not_depend_on_the_order_of_seeds(order: tuple[float, ...]) -> None:
    rows = [row for seed, right in enumerate(order) for row in curve("medic", {250: right}, "acc", seed)]
    assert verdicts(figure3=rows + curve("scratch", {2500: 80.0}, "acc"))["Fig. 3"] == "holds"


@pytest.mark.parametrize(("alone", "here"), [(89.0, "holds"), (91.0, "fails")])
def test_the_claim_on_criteria_compares_the_best_of_each(alone: float, here: str) -> None:
    rows = curve("both", {1: 70.0, 3: 90.0}, "der") + curve("activation", {1: alone, 3: 10.0}, "der")
    rows += curve("impact", {1: 80.0}, "der")
    assert verdicts(figure7=rows)["E.6"] == here


@pytest.mark.parametrize(("trained", "here"), [(85.0, "holds"), (87.0, "fails"), (MISSING, "not measured")])
def test_the_claim_on_data_compares_with_ten_times_as_much(trained: float, here: str) -> None:
    rows = curve("medic", {250: 86.0}, "acc") + curve("scratch", {500: 99.0, 2500: trained}, "acc")
    assert verdicts(figure3=rows)["Fig. 3"] == here


@pytest.mark.parametrize(
    ("accuracy", "theirs", "here"), [(80.0, 3.0, "holds"), (80.0, 1.0, "fails"), (60.0, 1.0, "holds")]
)
def test_the_claim_on_clean_label_is_of_methods_that_look_at_the_suspect_and_do_not_wreck_it(
    accuracy: float, theirs: float, here: str
) -> None:
    rows = [
        Row("cleanlabel", method, 0, None, {"acc": 80.0, "asr": asr})
        for method, asr in {"none": 100.0, "benign": 0.1, "scratch": 0.5, "medic": 2.0}.items()
    ]
    rows.append(Row("cleanlabel", "fine_tune", 0, None, {"acc": accuracy, "asr": theirs}))
    assert verdicts(table1=rows)["Table 1"] == here
