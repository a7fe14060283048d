from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from medic_client import doctor, main, service
from medic_client.client import MedicClient
from medic_client.display import follow
from tests.medic_client.fake_service import FakeService, comparison, job_json

pytestmark = pytest.mark.usefixtures("pauses")

FAILURE = {"code": "nan_loss", "class": "user", "message": "The loss became NaN.", "problems": []}


@pytest.fixture(autouse=True)
def fake(monkeypatch) -> FakeService:
    made = FakeService()

    def client(url: str, key: str | None) -> MedicClient:
        return MedicClient(url, key, transport=httpx.MockTransport(made))

    monkeypatch.setattr(service, "MedicClient", client)
    monkeypatch.setenv("MEDIC_URL", "http://service")
    monkeypatch.setenv("MEDIC_API_KEY", "mdk_a_b")
    return made


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    for name in ("suspect.pth", "clean.zip", "test.zip", "triggered.zip"):
        (tmp_path / name).write_bytes(name.encode())
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def medic(*arguments: str) -> Result:
    return CliRunner().invoke(main.cli, arguments)


def sanitize(files: dict[str, str], *more: str) -> Result:
    out = () if "--no-wait" in more else ("--out", str(Path(files["suspect"]).parent / "out"))
    architecture = ("--architecture", "medic/wide_resnet16_1")
    return medic("sanitize", files["suspect"], *architecture, "--clean", files["clean"], *out, *more)


def test_sanitize_uploads_starts_follows_and_downloads_and_shows_the_table(fake, files, tmp_path):
    result = sanitize(files, "--test", files["test"], "--triggered", files["triggered"], "--target", "dog")
    assert result.exit_code == 0, result.output
    assert fake.uploads == {
        "model": b"suspect.pth",
        "clean": b"clean.zip",
        "test": b"test.zip",
        "triggered": b"triggered.zip",
    }
    (spec,) = fake.specs
    assert spec["triggered_data"] == {"file_id": "file_triggered", "target_class": "dog"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    for figure in ("397", "98.0 % [97.0, 98.0]", "2.0 % [2.0, 3.0]", "95.0 %"):
        assert figure in result.stdout


def test_json_is_one_object_on_stdout_and_everything_else_is_on_stderr(files):
    result = sanitize(files, "--json")
    assert result.exit_code == 0
    job = json.loads(result.stdout)
    assert job["status"] == "succeeded"
    assert job["terminal"] is True
    assert job["summary"]["attack_success_rate"]["after"] == 0.02
    assert "attack success" in result.stderr


def test_every_option_reaches_the_spec(fake, files):
    result = sanitize(
        files,
        *("--set", "preset=paper", "--set", "temperature=2.5", "--set", 'layers=["linear"]', "--set", "seed=3"),
        *("--option", "dropout=0.3", "--class-names", "cat,dog", "--input-size", "32,48", "--mean", "0.5"),
        *("--std", "0.1,0.2,0.3", "--color-order", "BGR", "--value-range=-1,1"),
        *("--metadata", "git=5", "--deadline", "90"),
    )
    assert result.exit_code == 0, result.output
    (spec,) = fake.specs
    assert spec["model"]["options"] == {"dropout": 0.3}
    assert spec["model"]["class_names"] == ["cat", "dog"]
    assert spec["model"]["preprocessing"] == {
        "input_size": [32, 48],
        "color_order": "BGR",
        "value_range": [-1, 1],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.1, 0.2, 0.3],
    }
    removal = spec["removal"]
    assert (removal["preset"], removal["temperature"], removal["layers"]) == ("paper", 2.5, ["linear"])
    assert (removal["seed"], removal["impact"]) == (3, "magnitude")
    assert spec["metadata"] == {"git": "5"}
    assert spec["deadline_seconds"] == 90


def test_another_method_takes_settings_of_its_own(fake, files):
    result = sanitize(files, "--method", "auto", "--set", "accuracy_budget=0.02")
    assert result.exit_code == 0, result.output
    removal = fake.specs[0]["removal"]
    assert (removal["method"], removal["accuracy_budget"], removal["runs"]) == ("auto", 0.02, 4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--set", "temperature=-1"), "temperature"),
        (("--set", "temprature=1"), "temprature"),
        (("--set", "temperature"), "KEY=VALUE"),
        (("--method", "prayer"), "prayer"),
        (("--mean", "1,2"), "not 3 numbers"),
        (("--target", "dog"), "belong together"),
        (("--deadline", "0"), "--deadline"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_what_is_asked_for_wrongly_is_a_usage_error_before_anything_is_sent(fake, files, more, said):
    result = sanitize(files, *more)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert fake.asked == []


def test_only_a_method_that_takes_no_images_may_go_without(fake, files, tmp_path):
    given = ("sanitize", files["suspect"], "--architecture", "medic/wide_resnet16_1", "--out", str(tmp_path / "out"))
    refused = medic(*given)
    assert refused.exit_code == 2
    assert "clean_data" in refused.stderr
    assert fake.asked == []
    assert medic(*given, "--method", "lipschitz_pruning").exit_code == 0
    assert fake.uploads == {"model": b"suspect.pth"}
    assert fake.specs[0].get("clean_data") is None


def test_there_is_no_table_of_what_was_not_measured(fake, files):
    assert "share of n images" in sanitize(files).stdout
    fake.ended = {"summary": dict.fromkeys(fake.ended["summary"])}
    result = sanitize(files)
    assert result.exit_code == 0
    assert "share of n images" not in result.stdout


def test_a_missing_file_and_a_missing_folder_for_the_results_are_usage_errors(fake, files):
    assert sanitize({**files, "suspect": "/no/such/file"}).exit_code == 2
    assert medic("sanitize", files["suspect"], "--architecture", "medic/x", "--clean", files["clean"]).exit_code == 2
    assert fake.asked == []


def refused(status: int) -> httpx.Response:
    return httpx.Response(status, json={"code": "some_code", "detail": "because", "status": status})


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        (refused(401), 4, "some_code"),
        (refused(403), 4, "because"),
        (refused(404), 5, "because"),
        (refused(422), 5, "because"),
        (refused(500), 5, "because"),
        (refused(503), 5, "because"),
        (httpx.Response(200, text="<html>welcome</html>"), 5, "check MEDIC_URL"),
        (httpx.ConnectError("connection refused"), 7, "connection refused"),
        (RuntimeError("a bug"), 5, "a bug"),
    ],
    ids=["401", "403", "404", "422", "500", "503", "a page", "unreachable", "bug"],
)
@pytest.mark.parametrize(
    "command",
    [
        ("jobs", "list"),
        ("jobs", "show", "job_1"),
        ("jobs", "cancel", "job_1"),
        ("jobs", "delete", "job_1"),
        ("watch", "job_1"),
        ("download", "job_1", "--out", "never"),
    ],
    ids=" ".join,
)
def test_every_command_says_by_its_exit_code_what_went_wrong(fake, command, refusal, code, said):
    fake.refusal = refusal
    result = medic(*command)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command",
    [("jobs", "list"), ("jobs", "delete", "job_1"), ("watch", "job_1"), ("demo", "--out", "never")],
    ids=" ".join,
)
def test_a_key_that_cannot_be_sent_is_a_usage_error_before_anything_is_sent_and_is_not_shown(
    fake, monkeypatch, command
):
    monkeypatch.setenv("MEDIC_API_KEY", "mdk_a_hiddén")
    result = medic(*command)
    assert result.exit_code == 2
    assert "MEDIC_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr
    assert "hidd" not in result.output
    assert fake.asked == []


def test_a_key_that_was_read_with_its_line_end_is_taken(monkeypatch):
    monkeypatch.setenv("MEDIC_API_KEY", "mdk_a_b\n")
    assert medic("jobs", "show", "job_1").exit_code == 0


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_without_success_is_exit_code_5_with_the_job_on_stdout_and_nothing_downloaded(
    fake, files, tmp_path, status
):
    fake.statuses, fake.ended = [status], {"error": FAILURE if status == "failed" else None}
    result = sanitize(files, "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["status"] == status
    assert status in result.stderr
    if status == "failed":
        assert "The loss became NaN. (nan_loss)" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sanitize", "watch"])
def test_when_patience_is_over_the_exit_code_is_6_and_the_way_back_is_said(fake, files, command):
    fake.statuses = ["running"]
    result = sanitize(files, "--timeout", "0") if command == "sanitize" else medic("watch", "job_1", "--timeout", "0")
    assert result.exit_code == 6
    assert "medic watch job_1" in result.stderr
    assert "POST /v1/jobs/job_1/cancel" not in fake.asked


@pytest.mark.parametrize("command", ["sanitize", "watch"])
def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(fake, files, monkeypatch, command):
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medic_client.client.time.sleep", interrupted)
    result = sanitize(files) if command == "sanitize" else medic("watch", "job_1")
    assert result.exit_code == 130
    assert "job_1 goes on: come back with `medic watch job_1`" in result.stderr
    assert "POST /v1/jobs/job_1/cancel" not in fake.asked


def test_a_job_of_an_embedded_service_is_said_to_stay_queued(fake, capsys):
    fake.statuses = ["running"]
    embedded = service.Service(service.remote(os.environ), embedded=True)
    with pytest.raises(main.WaitTimedOutError):
        follow(embedded, "job_1", timeout_seconds=0)
    assert "job_1 stays queued: start `medic serve`, then `medic watch job_1`" in capsys.readouterr().err


def test_no_wait_prints_the_id_and_leaves(fake, files):
    result = sanitize(files, "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "job_1\n")
    assert fake.polls == 0
    assert json.loads(sanitize(files, "--no-wait", "--json").stdout)["id"] == "job_1"


def test_no_wait_needs_a_service_that_stays(files, monkeypatch):
    monkeypatch.delenv("MEDIC_URL")
    result = sanitize(files, "--no-wait")
    assert result.exit_code == 2
    assert "MEDIC_URL" in result.stderr


def test_watch_follows_to_the_end(fake):
    fake.statuses = ["queued", "running", "running", "succeeded"]
    result = medic("watch", "job_1", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["status"] == "succeeded"
    assert fake.polls == 4


def test_download_prints_the_paths_of_what_it_fetched(tmp_path):
    result = medic("download", "job_1", "model.safetensors", "--out", str(tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out' / 'model.safetensors'}\n")
    assert Path(result.stdout.strip()).read_bytes() == b"repaired"


def test_downloading_an_artifact_that_the_job_has_not_fetches_nothing(tmp_path):
    result = medic("download", "job_1", "model.safetensors", "no.such", "--out", str(tmp_path / "out"))
    assert result.exit_code == 5
    assert "no.such" in result.stderr
    assert not (tmp_path / "out").exists()


def test_jobs_are_listed_a_line_each_and_as_json():
    result = medic("jobs", "list")
    assert result.stdout.split("\t")[:2] == ["job_1", "failed"]
    assert "--after cursor" in result.stderr
    page = json.loads(medic("jobs", "list", "--json").stdout)
    assert [job["id"] for job in page["jobs"]] == ["job_1"]
    assert page["next"] == "cursor"


def test_jobs_are_shown_cancelled_and_deleted(fake):
    assert json.loads(medic("jobs", "show", "job_1", "--json").stdout)["id"] == "job_1"
    assert json.loads(medic("jobs", "cancel", "job_1").stdout)["status"] == "cancelling"
    assert medic("jobs", "delete", "job_1").exit_code == 0
    assert fake.asked == ["GET /v1/jobs/job_1", "POST /v1/jobs/job_1/cancel", "DELETE /v1/jobs/job_1"]


def test_text_from_the_service_is_shown_as_it_is(fake):
    fake.statuses, fake.ended = ["failed"], {"error": {**FAILURE, "message": "[red]not markup[/red]"}}
    assert "[red]not markup[/red]" in medic("watch", "job_1").stderr


@pytest.fixture
def demo_inputs(monkeypatch) -> Callable[..., None]:
    """Stand in for ``python -m worker.demo``."""

    def made(arguments: list[str], **_: Any) -> Any:
        folder = Path(arguments[-1])
        folder.mkdir(parents=True)
        for name in ("suspect.pth", "clean.zip", "test.zip", "triggered.zip"):
            (folder / name).write_bytes(b"x")
        info = {"architecture": "medic/wide_resnet10_1", "target_class": "7"}
        info |= {name: {"method": name, "epochs": 2} for name in ("medic", "scratch")}
        (folder / "info.json").write_text(json.dumps(info))
        return type("Ended", (), {"returncode": 0})

    monkeypatch.setattr("medic_client.demo.subprocess.run", made)
    return made


@pytest.mark.usefixtures("demo_inputs")
def test_the_demo_repairs_and_trains_from_scratch_on_the_same_files_and_shows_both(fake, tmp_path):
    result = medic("demo", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 0, result.output
    assert [spec["removal"]["method"] for spec in fake.specs] == ["medic", "scratch"]
    assert fake.specs[0] == {**fake.specs[1], "removal": fake.specs[0]["removal"]}
    assert "from scratch" in result.stdout
    assert f'curl -sSf -H "$auth" -T {tmp_path / "demo/inputs/suspect.pth"}' in result.stdout
    for folder in ("medic", "scratch"):
        assert (tmp_path / "demo" / folder / "model.safetensors").read_bytes() == b"repaired"


@pytest.mark.usefixtures("demo_inputs")
def test_the_demos_json_is_the_job_alone(tmp_path):
    result = medic("demo", "--json", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["summary"]["attack_success_rate"]["before"] == 1.0
    assert "curl" in result.stderr


@pytest.mark.usefixtures("demo_inputs")
@pytest.mark.parametrize(
    ("name", "figures", "said"),
    [
        ("attack_success_rate", comparison(0.89, 0.02), "starts at 89.0%"),
        ("attack_success_rate", comparison(1.0, 0.11), "ends at 11.0%"),
        ("clean_accuracy", comparison(0.98, 0.949), "falls from 98.0% to 94.9%"),
        ("attack_success_rate", None, "not measured"),
    ],
)
def test_the_demo_fails_when_it_does_not_reach_what_it_promises(fake, tmp_path, name, figures, said):
    fake.ended = {"summary": {**fake.ended["summary"], name: figures}}
    result = medic("demo", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 5
    assert said in result.stderr


@pytest.mark.usefixtures("demo_inputs")
def test_the_demo_may_lose_three_points_exactly(fake, tmp_path):
    fake.ended = {"summary": {**fake.ended["summary"], "clean_accuracy": comparison(0.97, 0.94)}}
    assert medic("demo", "--out", str(tmp_path / "demo")).exit_code == 0


def test_keys_are_those_of_the_service_on_this_machine(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MEDIC_DATA_DIR", str(tmp_path))
    assert medic("keys", "create", "--tenant", "birds").exit_code == 0
    key_id = capfd.readouterr().out.split("_")[1]
    assert medic("keys", "revoke", key_id).exit_code == 0
    assert medic("keys", "list").exit_code == 0
    assert json.loads(capfd.readouterr().out)["id"] == key_id
    assert medic("keys", "revoke", "nobody").exit_code == 5
    assert medic("keys", "invent").exit_code == 2


def test_trigger_runs_the_workers_tool_and_passes_its_verdict_on(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("cat/0.png", b"not an image")
    data, out = ("--data", str(tmp_path / "in.zip")), ("--out", str(tmp_path / "out.zip"))
    assert medic("trigger", "--kind", "badnet", *data, *out).exit_code == 2
    assert medic("trigger", "--kind", "no-such-kind", *data, *out).exit_code == 2
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (("--kind", "composite", "--classes", "cat", "dog"), ["cat/0.png"]),
        (("--kind", "latent", "--pattern", "{folder}/pattern.png"), ["cat/0.png", "dog/0.png"]),
    ],
    ids=["classes", "pattern"],
)
def test_trigger_passes_classes_and_pattern_on(tmp_path, options, written):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, shade in (("cat/0.png", 0), ("dog/0.png", 255)):
            archive.writestr(name, plain_image(16, shade))
    (tmp_path / "pattern.png").write_bytes(plain_image(3, 100))
    named = [option.format(folder=tmp_path) for option in options]
    result = medic("trigger", *named, "--data", str(tmp_path / "in.zip"), "--out", str(tmp_path / "out.zip"))
    assert result.exit_code == 0
    assert zipfile.ZipFile(tmp_path / "out.zip").namelist() == written


def plain_image(side: int, shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def test_no_arguments_and_unknown_commands_are_usage_errors():
    assert medic().exit_code == 2
    assert medic("no-such-command").exit_code == 2
    assert medic("--help").exit_code == 0


def test_fake_jobs_are_jobs_of_the_contract():
    assert main.Job.model_validate(job_json("running")).terminal is False


STATES = {"udp": "active", "reading": "active"}


@pytest.mark.parametrize(
    ("workers", "row", "exit_code"),
    [
        ([], ("note", "none shares the data folder"), 0),
        ([STATES], ("ok", "sandbox strict: all layers active"), 0),
        ([{**STATES, "signals": "unavailable"}], ("note", "sandbox strict: signals unavailable"), 0),
        ([{**STATES, "udp": "broken"}], ("broken", "sandbox strict: udp broken"), 5),
    ],
)
def test_doctor_shows_the_sandbox_of_the_services_workers(fake, monkeypatch, workers, row, exit_code):
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    fake.ready["workers"] = [{"mode": "strict", "layers": layers} for layers in workers]
    result = medic("doctor", "--json")
    assert result.exit_code == exit_code
    here, reached, *theirs = json.loads(result.stdout)["checks"]
    assert (here["state"], reached["state"]) == ("note", "ok")
    assert [(check["state"], check["detail"].startswith(row[1])) for check in theirs] == [(row[0], True)]
    assert fake.asked == ["GET /readyz"]
    table = medic("doctor")
    assert (table.exit_code, row[1] in table.stdout) == (exit_code, True)


def test_doctor_without_a_url_asks_nobody_and_an_unreachable_service_is_broken(fake, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    fake.refusal = httpx.ConnectError("refused")
    assert medic("doctor").exit_code == 5
    fake.asked.clear()
    monkeypatch.delenv("MEDIC_URL")
    assert medic("doctor").exit_code == 0
    assert fake.asked == []


@pytest.mark.parametrize(
    ("key", "answer", "said"),
    [("mdk_…", None, "MEDIC_API_KEY"), ("mdk_a_b", httpx.Response(200, text="<html>"), "check MEDIC_URL")],
    ids=["key", "answer"],
)
def test_doctor_tells_a_key_that_cannot_be_sent_and_an_answer_of_something_else(fake, monkeypatch, key, answer, said):
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setenv("MEDIC_API_KEY", key)
    fake.refusal = answer
    result = medic("doctor", "--json")
    assert result.exit_code == 5
    check = json.loads(result.stdout)["checks"][-1]
    assert (check["name"], check["state"]) == ("service", "broken")
    assert said in check["detail"]


def test_doctor_says_when_the_worker_here_cannot_even_be_looked_at(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("MEDIC_URL")
    result = medic("doctor", "--json")
    assert result.exit_code == 5
    (check,) = json.loads(result.stdout)["checks"]
    assert (check["state"], check["detail"]) == ("broken", "its doctor ended with status 3")
