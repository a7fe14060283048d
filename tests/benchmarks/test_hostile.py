from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.hostile import archives, images
from benchmarks.hostile.__main__ import KINDS
from benchmarks.hostile.honest import Honest, make_honest
from benchmarks.hostile.intake import Reader, read_all
from benchmarks.hostile.kinds import TAKEN, Hostile, Kind, corpus, kinds_of
from benchmarks.hostile.models import gadget
from benchmarks.hostile.service import left_behind

FEW = 4
"""Kinds with no more files take seconds each; of these the loaders' own tests have smaller ones."""


@pytest.fixture
def honest(tmp_path: Path) -> Honest:
    return make_honest(tmp_path / "flag", trained=False)


def test_the_corpus_is_as_large_as_promised_and_every_kind_says_what_is_right() -> None:
    files = list(corpus(KINDS, seed=0))
    assert len(KINDS) >= 40
    assert len(files) >= 1000
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert all(kind.codes and kind.files for kind in KINDS)


def test_a_seed_gives_the_same_bytes_again_and_another_seed_others(honest: Honest) -> None:
    def drawn(seed: int) -> list[bytes]:
        chosen = [kind for kind in kinds_of(archives, images) if kind.files >= 30]
        return [hostile.data(honest) for hostile in corpus(chosen, seed=seed, most=1)]

    first = drawn(0)
    assert len(first) > 10
    assert drawn(0) == first
    assert all(one != other for one, other in zip(first, drawn(1), strict=True))


def test_one_of_each_kind_is_answered_as_it_should_be(honest: Honest, tmp_path: Path) -> None:
    chosen = [kind for kind in KINDS if kind.files > FEW]
    outcomes = list(read_all(corpus(chosen, seed=1, most=1), honest, tmp_path))
    assert len(outcomes) == len(chosen)
    assert {outcome.hostile.kind.name: outcome.wrong for outcome in outcomes if outcome.wrong} == {}


def test_the_gadgets_would_leave_the_flag(honest: Honest) -> None:
    for number in range(20):
        pickle.loads(pickle.dumps(gadget(Random(number), honest)))  # noqa: S301, S311 - our own, and repeatable
        assert honest.flag.exists(), number
        honest.flag.rmdir() if honest.flag.is_dir() else honest.flag.unlink()


def test_the_runner_sees_a_wrong_code_code_that_was_run_and_files_outside(honest: Honest, tmp_path: Path) -> None:
    def harmless(_: Random, made_from: Honest) -> bytes:
        (tmp_path / "elsewhere").touch()
        return made_from.files()["model"]

    honest.flag.mkdir()
    expected_to_fail = Kind(harmless, frozenset({"model_truncated"}), ("model",), 1)
    (outcome,) = read_all([Hostile(expected_to_fail, 0, 0)], honest, tmp_path)
    assert outcome.code == TAKEN
    assert outcome.wrong == (
        "wrote 'elsewhere' outside of its folder",
        "code was run",
        "taken instead of model_truncated",
    )


def test_a_process_that_dies_is_told_and_the_next_file_gets_another(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    assert reader.read(tmp_path / "missing") == "crashed"
    assert reader.read(tmp_path / "missing") == "crashed"
    reader.end()


def test_a_child_that_outlives_the_service_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = set(tmp_path.iterdir())
    assert left_behind(tmp_path, before).wrong == ()
    code, pipe = "print(flush=True); input()", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, env={"HOME": str(home)}) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the kernel shows no environment until the program is laid out
        assert left_behind(tmp_path, before).wrong == (f"left the process {child.pid}",)
        child.kill()
