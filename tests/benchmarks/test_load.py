from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.load import __main__ as program
from benchmarks.load import connections, overhead, posting, uploads
from benchmarks.load.__main__ import PARTS, keep, main, table
from benchmarks.load.figures import Measured, Target, p99, spread
from benchmarks.load.memory import growth
from benchmarks.load.posting import ENDED
from benchmarks.load.service import STAND_IN_POLLING, running, said, small_spec, started
from benchmarks.stack import wait_for

ROUTES = {"nothing", "nothing_for_callers", "job"}


def test_a_bound_is_kept_or_not() -> None:
    assert Target("a", 1.0, at_most=1.0).met
    assert not Target("a", 1.1, at_most=1.0).met
    assert Target("a", 1.0, at_least=1.0).met
    assert not Target("a", 0.9, at_least=1.0).met
    assert not Target("a", math.nan, at_most=1.0).met


def test_99_of_100_lie_below_the_p99() -> None:
    seconds = [number / 1000 for number in range(1000)]
    assert sum(1000 * each <= p99(seconds) for each in seconds) == 990
    assert spread([0.001, 0.002, 0.003]) == {"n": 3, "p50_ms": 2.0, "p99_ms": 2.98, "max_ms": 3.0}


def test_growth_is_told_by_the_hour_with_its_error() -> None:
    slope, error = growth([100 + number / 600 for number in range(600)], seconds=600)
    assert (slope, error) == (pytest.approx(6.0), pytest.approx(0.0, abs=1e-6))
    slope, error = growth([100 + number % 60 / 30 * (-1) ** (number // 60) for number in range(600)], seconds=600)
    assert abs(slope) < 2 * error


def test_a_part_is_kept_by_itself_and_takes_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    for name, value in (("posting", 1.0), ("listing", 2.0), ("posting", 3.0)):
        keep(path, name, Measured([Target("ms", value, at_most=2.0)], {"n": 7}), 90)
    listing, posted = json.loads(path.read_text())
    assert (listing["part"], posted["part"]) == ("listing", "posting")
    assert posted["targets"] == [{"what": "ms", "measured": 3.0, "at_most": 2.0, "met": False}]
    assert (posted["figures"], posted["minutes"]) == ({"n": 7}, 1.5)
    assert posted["machine"]["cores"]


def test_a_missed_promise_is_shown_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missed = Measured([Target("ms", 3.0, at_most=2.0)])
    monkeypatch.setattr(program, "PARTS", {**PARTS, "listing": lambda _folder, _scale: missed})
    monkeypatch.setattr(program, "RESULT", tmp_path / "load.json")
    assert "MISSED" in table("listing", missed)
    ended = CliRunner().invoke(main, ["--only", "listing", "--scale", "0.5"])
    assert (ended.exit_code, "MISSED" in ended.output) == (1, True)
    assert not (tmp_path / "load.json").exists()
    assert CliRunner().invoke(main, ["--only", "listing"]).exit_code == 1
    assert (tmp_path / "load.json").exists()


def test_what_a_poll_costs_is_measured_beside_nothing(tmp_path: Path) -> None:
    measured = overhead.measure(tmp_path, 0.01)
    assert measured.figures.keys() == ROUTES
    assert all(figures["n"] == 50 for figures in measured.figures.values())


def test_uploads_and_the_bare_writer_take_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "ROUNDS", 1)
    measured = uploads.measure(tmp_path, 1 / uploads.MEBIBYTES)
    assert measured.figures["mebibytes"] == 1
    assert measured.targets[1].measured > 0
    assert list(tmp_path.iterdir()) == []  # what was written is gone


def test_an_upload_that_is_answered_otherwise_is_no_figure(tmp_path: Path) -> None:
    with started(tmp_path, ("-m", "benchmarks.load.bare", str(tmp_path / "blobs"))) as ((process, log),):
        port = int(said(process, log, r"listening on (\d+)\n")[1])
        with pytest.raises(RuntimeError, match="an upload was answered"):
            uploads._sent(port, b"", 1, answer=b"HTTP/1.1 201 ")


def test_a_worker_with_a_stand_in_ends_each_job_once_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, STAND_IN_POLLING, STAND_IN_POLLING) as service, service.client() as client:
        spec = small_spec(client, tmp_path)
        posted = {client.create_job(spec).id for _ in range(6)}
        wait_for(lambda: not posting._waiting(client), 120)
        assert posting._succeeded(client) == posted
        assert all(client.artifacts(job_id) for job_id in posted)
        wait_for(lambda: len(ends(service.logs)) >= len(posted), 30)
        assert sorted(ends(service.logs)) == sorted(posted)


def ends(logs: tuple[Path, ...]) -> list[str]:
    return [job_id for log in logs for job_id in ENDED.findall(log.read_text())]


def test_a_crowd_is_there_while_honest_clients_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SECONDS", 100.0)
    measured = connections.measure(tmp_path, 0.02)
    assert measured.figures["idle"] == 40
    assert measured.targets[1].measured == 0
