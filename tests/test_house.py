"""What is pinned, built, composed and imported agrees with itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from jobs.keys import record_of
from jobs.settings import Settings
from medic_client.supervise import CELERY_WORKER, stop_grace

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["mypy"]["packages"]
PINS = [
    Requirement(line.partition("#")[0])
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line[0] != "#"
]
COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
IMAGES = ("api", "worker")


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def import_afresh(names: list[str], then: str = "") -> None:
    """Import modules in an interpreter of its own; the Celery worker wants a broker named, and calls it only later.

    Alembic runs ``jobs.migrations.env`` and never imports it.
    """
    code = f"import sys, {', '.join(name for name in names if name != 'jobs.migrations.env')}; {then}"
    environment = {**os.environ, "MEDIC_BROKER_URL": "redis://127.0.0.1:6379/0"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def requirements(name: str) -> list[Requirement]:
    """What a distribution asks for; our own by pyproject.toml, so that an old installation hides nothing."""
    if name != PYPROJECT["project"]["name"]:
        return [Requirement(line) for line in importlib.metadata.requires(name) or ()]
    lines = list(PYPROJECT["project"]["dependencies"])
    for extra, wanted in PYPROJECT["project"]["optional-dependencies"].items():
        lines += [f'{line}; extra == "{extra}"' for line in wanted]
    return [Requirement(line) for line in lines]


def closure(*extras: str) -> set[str]:
    """Every distribution that installing the project with ``extras`` brings here."""
    seen: set[tuple[str, str]] = set()
    waiting = [("medic", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        for need in requirements(name):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), wanted) for wanted in ("", *need.extras)]
    return {name for name, _ in seen} - {"medic"}


def dockerfile(image: str) -> str:
    return (ROOT / "docker" / f"{image}.Dockerfile").read_text()


def extras_of(image: str) -> list[str]:
    return re.findall(r'"\.\[(\w+)\]"', dockerfile(image))


def copied_into(image: str) -> list[str]:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(image), re.MULTILINE)
    return [source for sources in copies for source in sources.split()]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Whatever make started these tests keeps its own flags to itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package: str) -> None:
    import_afresh(modules(package))


@pytest.mark.parametrize(
    "light",
    [modules("api"), modules("jobs"), modules("medic_client"), ["worker.tasks", "worker.__main__"]],
    ids=["api", "jobs", "medic_client", "supervisor"],
)
def test_processes_that_do_not_train_never_load_torch(light: list[str]) -> None:
    import_afresh(light, "assert 'torch' not in sys.modules")


def test_every_requirement_is_pinned_to_what_the_tests_run_with() -> None:
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in PINS}
    here = {name: f"=={importlib.metadata.version(name).partition('+')[0]}" for name in closure("dev")}
    assert {"torch", "celery", "pytest"} <= here.keys()
    assert here == {name: pinned.get(name) for name in here}


def test_the_build_uses_the_setuptools_that_is_pinned() -> None:
    assert [pin for pin in PINS if pin.name == "setuptools"] == [
        Requirement(line) for line in PYPROJECT["build-system"]["requires"]
    ]


def test_constraints_name_versions_and_no_place_to_get_them() -> None:
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in PINS)
    assert not any(pin.url or pin.extras for pin in PINS)


def test_only_the_worker_image_has_torch() -> None:
    assert "torch" in closure(*extras_of("worker"))
    assert closure(*extras_of("api")).isdisjoint({"torch", "torchvision", "scikit-learn", "triton"})


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_copies_only_what_exists_and_the_build_context_has(image: str) -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert copied_into(image)
    for source in copied_into(image):
        assert (ROOT / source).exists()
        assert source in kept


def imported_by(package: str) -> Iterator[str]:
    """Top-level names that the package needs at run time, through our other packages too."""
    graph = grimp.build_graph(
        *PACKAGES, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    for module in graph.find_upstream_modules(package, as_package=True):
        yield module.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "extras"), [("medic_client", ()), ("jobs", ("jobs",)), ("api", ("api",)), ("worker", ("worker",))]
)
def test_a_package_imports_only_what_its_extra_installs(package: str, extras: tuple[str, ...]) -> None:
    foreign = set(imported_by(package)) - {*PACKAGES, *sys.stdlib_module_names}
    providers = importlib.metadata.packages_distributions()
    installed = closure(*extras)
    assert foreign
    assert {name for name in foreign if installed.isdisjoint(map(canonicalize_name, providers[name]))} == set()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_every_package_that_its_code_imports(image: str) -> None:
    assert {name for name in imported_by(image) if name in PACKAGES} | {image} <= set(copied_into(image))


@pytest.mark.parametrize("service", ["api", "worker", "worker-gpu"])
def test_compose_sets_only_settings_that_exist_to_values_that_hold(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = COMPOSE["services"][service]["environment"]
    assert {"MEDIC_DATABASE_URL", "MEDIC_BROKER_URL"} <= environment.keys()
    assert {name.removeprefix("MEDIC_").lower() for name in environment} <= Settings.model_fields.keys()
    for name, value in environment.items():
        monkeypatch.setenv(name, re.sub(r"\$\{.+?\}", "filled-in", value))
    Settings()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_sets_only_settings_that_exist(image: str) -> None:
    names = re.findall(r"\bMEDIC_(\w+)=", dockerfile(image))
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_api_and_workers_share_the_data_folder() -> None:
    services = [COMPOSE["services"][name] for name in ("api", "worker", "worker-gpu")]
    folders = {service["environment"]["MEDIC_DATA_DIR"] for service in services}
    assert len(folders) == 1
    assert all(service["volumes"] == [f"data:{folder}"] for service in services for folder in folders)


def test_compose_lets_clients_in_by_the_proxy_alone() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["proxy"]
    assert COMPOSE["services"]["proxy"]["volumes"] == ["./docker/nginx.conf:/etc/nginx/nginx.conf:ro"]


def test_compose_refuses_to_start_without_a_key() -> None:
    assert COMPOSE["services"]["api"]["environment"]["MEDIC_API_KEY"].startswith("${MEDIC_API_KEY:?")


def test_the_key_that_compose_says_how_to_make_is_one() -> None:
    written = re.findall(r"MEDIC_API_KEY=(mdk\S*)\$\(openssl rand -hex 32\)", (ROOT / "docker-compose.yml").read_text())
    assert len(written) == 1
    assert record_of(written[0] + "0123456789abcdef" * 4).id == "main"


@pytest.mark.parametrize("service", ["worker", "worker-gpu"])
def test_compose_waits_longer_for_a_worker_than_the_worker_for_its_job(service: str) -> None:
    worker = COMPOSE["services"][service]
    period = re.fullmatch(r"(\d+)s", worker["stop_grace_period"])
    assert period is not None
    assert int(period[1]) > float(worker["environment"]["MEDIC_STOP_GRACE_SECONDS"])


@pytest.mark.parametrize("seconds", [None, "0", "50"])
def test_medic_serve_waits_longer_for_a_worker_than_the_worker_for_its_job(
    seconds: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDIC_STOP_GRACE_SECONDS", raising=False)
    if seconds is not None:
        monkeypatch.setenv("MEDIC_STOP_GRACE_SECONDS", seconds)
    assert stop_grace(os.environ) == Settings().stop_grace_seconds + 10


def test_the_image_starts_celery_as_medic_serve_does() -> None:
    commands = re.findall(r"^CMD (\[.+?\])$", dockerfile("worker").replace("\\\n", ""), re.MULTILINE)
    assert [json.loads(command) for command in commands] == [list(CELERY_WORKER[1:])]


def test_the_client_may_import_no_module_of_jobs_but_its_models_and_logs() -> None:
    forbidden = PYPROJECT["tool"]["importlinter"]["contracts"][-1]["forbidden_modules"]
    known = {name for name in modules("jobs") if not name.startswith("jobs.migrations.")}  # forbidden with their parent
    assert {name for name in forbidden if name.startswith("jobs.")} == known - {"jobs", "jobs.logs", "jobs.models"}


def test_every_target_that_is_spoken_of_exists() -> None:
    texts = [(ROOT / name).read_text() for name in ("README.md", ".ci/run")]
    named = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z-]+)(?=`|$| +#)", text, re.MULTILINE)}
    assert {"demo", "serve", "test", "lint"} <= named
    for target in named | {"bench"}:
        assert make(target).returncode == 0, make(target).stderr


@pytest.mark.parametrize(
    "target",
    [
        "demo",
        "serve",
        "test",
        "lint",
        "bench",
        "bench-real",
        "bench-default",
        "bench-speed",
        "bench-upload",
        "bench-hostile",
        "bench-load",
        "bench-architectures",
    ],
)
def test_a_target_installs_once_and_again_when_versions_change(target: str) -> None:
    assert "pip install" not in make("--assume-old", ".venv/installed", target).stdout
    assert "pip install" in make("--assume-new", "constraints.txt", target).stdout
