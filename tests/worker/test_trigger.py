from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.hostile.images import flat
from medic_core.attacks.triggers import TRIGGERS, badnet, find_trigger
from worker.loading import images as intake
from worker.task import IntakeLimits
from worker.trigger import UnusableDataError, main, put_trigger_on, read_images, read_pattern

DATA = Path(os.environ.get("MEDIC_TEST_DATA", "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="MEDIC_TEST_DATA (default ../shared/data) is absent")


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (16, 12), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def picture(mode: str, kind: str = "PNG", **options: object) -> bytes:
    """Noise in which every second row is transparent, as far as ``mode`` and ``options`` go."""
    pixels = np.random.default_rng(5).integers(1, 256, (16, 16, 4), dtype=np.uint8)
    pixels[::2, :, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def as_intake_sees_them(path: Path) -> np.ndarray:
    layout = intake.read_layout(path, IntakeLimits())
    return intake.read_images(path, layout, layout.class_names, size=(16, 16), limits=IntakeLimits()).images


EMPTY_PROFILE = struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP"))
"""A chunk at which Pillow raises an IndexError."""


def zip_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    return zip_of(
        tmp_path / "in.zip",
        {f"{label}/{i}.png": encoded(i, size=(16, 20)) for i, label in enumerate(["cat", "dog", "cat"])},
    )


@pytest.fixture
def pattern(tmp_path) -> Path:
    (tmp_path / "pattern.png").write_bytes(encoded(7, size=(3, 3)))
    return tmp_path / "pattern.png"


def run(data: Path, out: Path, kind: str = "badnet", *options: str) -> None:
    main(["--kind", kind, "--data", str(data), "--out", str(out), *options])


def needed(kind: str, pattern: Path) -> list[str]:
    """The options without which a kind does nothing."""
    return {"classes": ["--classes", "cat", "dog"], "pattern": ["--pattern", str(pattern)], None: []}[
        TRIGGERS[kind].needs
    ]


@pytest.mark.parametrize("kind", TRIGGERS)
def test_the_command_line_does_what_each_trigger_does(data, pattern, tmp_path, kind):
    run(data, tmp_path / "a.zip", kind, *needed(kind, pattern))
    run(data, tmp_path / "b.zip", kind, *needed(kind, pattern))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    named = list(read_images(data))
    names, images = [name for name, _ in named], torch.stack([pixels for _, pixels in named])
    labels = torch.tensor([["cat", "dog"].index(name.split("/")[0]) for name in names])
    needs = {"classes": (0, 1), "pattern": read_pattern(pattern)}
    trigger = find_trigger(kind, **{name: needs[name] for name in [TRIGGERS[kind].needs] if name})
    stamped, _ = trigger.on(images, labels)
    written = list(read_images(tmp_path / "a.zip"))
    assert [name for name, _ in written] == [names[chosen] for chosen in trigger.pairs(labels)[:, 0].tolist()]
    assert torch.equal(torch.stack([pixels for _, pixels in written]), stamped)
    assert not torch.equal(stamped, images[: len(stamped)])


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("composite", [], "composite needs classes"),
        ("composite", ["--classes", "cat", "cow"], "no folder is called 'cow'; there are cat, dog"),
        ("composite", ["--classes", "cow", "ant"], "'ant'"),
        ("composite", ["--classes", "dog", "dog"], "classes are twice the same"),
        ("latent", [], "latent needs pattern"),
        ("latent", ["--pattern", "absent.png"], "absent.png cannot be read as a pattern"),
        ("badnet", ["--classes", "cat", "dog"], "badnet takes no classes"),
    ],
)
def test_options_that_are_missing_or_not_taken_are_usage_errors(data, tmp_path, capsys, kind, options, said):
    with pytest.raises(SystemExit) as stopped:
        run(data, tmp_path / "out.zip", kind, *options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


def test_a_pattern_larger_than_the_smallest_image_is_refused(data, tmp_path, capsys):
    (tmp_path / "large.png").write_bytes(encoded(0, size=(9, 3)))
    with pytest.raises(SystemExit):
        run(data, tmp_path / "out.zip", "latent", "--pattern", str(tmp_path / "large.png"))
    assert "a pattern has at most 8 a side" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        *(picture(mode) for mode in ("RGBA", "LA", "RGB", "L", "1", "P")),
        picture("P", transparency=3),
        picture("RGB", transparency=(0, 0, 0)),
        picture("RGBA", "WEBP", lossless=True),
        picture("CMYK", "JPEG"),
    ],
    ids=["RGBA", "LA", "RGB", "L", "1", "P", "P, one clear", "RGB, one clear", "WEBP", "CMYK"],
)
def test_to_intake_an_image_differs_by_the_trigger_alone(tmp_path, content):
    source = zip_of(tmp_path / "in.zip", {"cat/0.png": content})
    run(source, tmp_path / "out.zip")
    before = torch.from_numpy(as_intake_sees_them(source))
    assert torch.equal(torch.from_numpy(as_intake_sees_them(tmp_path / "out.zip")), badnet(before))


def test_the_class_folders_are_those_that_intake_finds(tmp_path):
    source = zip_of(
        tmp_path / "in.zip",
        {"all/cat/0.png": encoded(0), "all/e\u0301te\u0301/0.png": encoded(1), "all/.cache/x": b"", "desktop.ini": b""},
    )
    run(source, tmp_path / "out.zip", "composite", "--classes", "cat", "\u00e9t\u00e9")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["all/cat/0.png"]


@pytest.mark.parametrize("kind", ["reflection", "composite"])
def test_images_may_differ_in_size(tmp_path, kind):
    source = zip_of(tmp_path / "in.zip", {"cat/0.png": encoded(0), "dog/1.png": encoded(1, size=(40, 10))})
    run(source, tmp_path / "out.zip", kind, *(["--classes", "cat", "dog"] if kind == "composite" else []))
    written = dict(read_images(tmp_path / "out.zip"))
    assert written["cat/0.png"].shape == (3, 16, 12)


def test_every_image_gets_the_trigger_under_its_own_folder_and_name(data, tmp_path):
    run(data, tmp_path / "out.zip")
    before, after = dict(read_images(data)), dict(read_images(tmp_path / "out.zip"))
    assert list(after) == ["cat/0.png", "dog/1.png", "cat/2.png"]
    for name, pixels in before.items():
        assert torch.equal(after[name], badnet(pixels[None])[0])


def test_the_same_input_gives_the_same_bytes(data, tmp_path):
    run(data, tmp_path / "a.zip")
    run(data, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_is_not_png_becomes_png_under_its_name_with_that_suffix(tmp_path):
    source = zip_of(
        tmp_path / "in.zip",
        {"cat/a.JPG": encoded(0, "JPEG"), "cat/b.webp": encoded(1, "WEBP"), "dog/gray": encoded(2, mode="L")},
    )
    run(source, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["cat/a.png", "cat/b.png", "dog/gray.png"]
        assert all(Image.open(archive.open(name)).format == "PNG" for name in archive.namelist())


def test_what_desktops_leave_in_archives_is_left_out(tmp_path):
    source = zip_of(tmp_path / "in.zip", {"cat/0.png": encoded(0), "__MACOSX/cat/0.png": b"x", "cat/.DS_Store": b"x"})
    run(source, tmp_path / "out.zip")
    assert [name for name, _ in read_images(tmp_path / "out.zip")] == ["cat/0.png"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "holds no images"),
        ({"cat/0.png": b"not an image"}, "'cat/0.png' cannot be decoded"),
        ({"cat/0.png": encoded(0)[:200]}, "'cat/0.png' cannot be decoded"),
        ({"cat/0.png": encoded(0)[:-12] + EMPTY_PROFILE + encoded(0)[-12:]}, "'cat/0.png' cannot be decoded"),
        ({"cat/0.png": encoded(0, size=(4, 4))}, "'cat/0.png' has fewer than 8 pixels a side"),
        ({"cat/0.png": picture("I;16")}, "'cat/0.png' cannot be decoded: mode I;16"),
        ({"0.png": encoded(0)}, "1 files lie in no class folder: '0.png'"),
        ({"../cat/0.png": encoded(0)}, "'../cat/0.png' leads out of the archive"),
        ({".": encoded(0)}, "no name of its own"),
        ({"cat/labels.csv": b"a,b"}, "'cat/labels.csv' cannot be decoded"),
        ({"cat/a.png": encoded(0), "cat/a.jpg": encoded(1, "JPEG")}, "'cat/a.jpg' is not the only image"),
    ],
)
def test_bad_input_is_a_usage_error_that_names_it_and_writes_nothing(tmp_path, capsys, entries, said):
    source = zip_of(tmp_path / "in.zip", {"cat/first.png": encoded(9)} | entries if entries else entries)
    with pytest.raises(SystemExit) as stopped:
        run(source, tmp_path / "out.zip")
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


@pytest.mark.parametrize(("kind", "share"), [("PNG", 1), ("WEBP", 2)])
def test_an_image_may_have_as_many_pixels_as_intake_takes_and_no_more(tmp_path, kind, share):
    width, height = 5000, IntakeLimits().image_pixels // share // 5000
    largest, larger = (flat("RGB", width, height + more, kind) for more in (0, 1))
    name = f"cat/0.{kind.lower()}"
    ((_, pixels),) = read_images(zip_of(tmp_path / "in.zip", {name: largest}))
    assert pixels.shape == (3, height, width)
    with pytest.raises(UnusableDataError, match=f"{width}×{height + 1} pixels are more than"):
        list(read_images(zip_of(tmp_path / "in.zip", {name: larger})))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("a.png", "cat/deep/b.png", "c.txt"), "badnet"),
        (("cat/a.png", "dog/b.txt", "dog/c.png"), "badnet"),
        (("dog/a.png", "dog/b.png"), "composite"),
    ],
    ids=["places", "contents", "others of a composite"],
)
def test_of_each_sort_every_problem_is_listed_at_once_and_once(tmp_path, capsys, names, kind):
    sound = {f"cat/{i}.png": encoded(i) for i in range(4)}
    source = zip_of(tmp_path / "in.zip", sound | {"dog/0.png": encoded(9)} | dict.fromkeys(names, b"x"))
    with pytest.raises(SystemExit):
        run(source, tmp_path / "out.zip", kind, *(["--classes", "cat", "dog"] if kind == "composite" else []))
    said = capsys.readouterr().err
    assert [said.count(repr(name)) for name in names] == [1] * len(names)
    assert "0.png" not in said
    assert not (tmp_path / "out.zip").exists()


def test_a_file_that_is_no_zip_or_absent_and_an_unknown_kind_are_usage_errors(tmp_path, capsys, data):
    (tmp_path / "text.zip").write_text("hello")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(data, "cat/0.png")
    for arguments in (
        (tmp_path / "in.tar", tmp_path / "out.zip"),
        (tmp_path / "text.zip", tmp_path / "out.zip"),
        (tmp_path / "absent.zip", tmp_path / "out.zip"),
        (data, tmp_path / "out.zip", "no-such-kind"),
        (data, data / "out.zip"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 2
    assert "no-such-kind" in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()


@needs_data
def test_the_authors_badnet_checkpoint_obeys_this_trigger_on_every_image_of_another_class(tmp_path):
    from medic_core.architectures import find_architecture

    put_trigger_on(DATA / "cifar10/test-1000.zip", tmp_path / "triggered.zip", "badnet")
    named = list(read_images(tmp_path / "triggered.zip"))
    classes = sorted({name.split("/")[0] for name, _ in named})
    labels = torch.tensor([classes.index(name.split("/")[0]) for name, _ in named])
    images = torch.stack([pixels for _, pixels in named]) / 255
    model = find_architecture("medic/wide_resnet16_1", num_classes=10).build()
    checkpoint = torch.load(DATA / "checkpoints/badnet-wrn16-1.pth.tar", weights_only=True, map_location="cpu")
    model.load_state_dict(checkpoint["state_dict"])
    with torch.inference_mode():
        predicted = model.eval()(images).argmax(dim=1)
    others = labels != classes.index("dog")
    assert others.sum().item() == 914
    assert (predicted[others] == classes.index("dog")).all()
