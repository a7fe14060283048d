from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.hostile.images import flat, progressive
from worker.loading.classes import check_enough, check_folders, check_target, missing_classes, settle_class_names
from worker.loading.images import ImageSet, Layout, read_images, read_layout
from worker.loading.refusal import RefusedError
from worker.task import IntakeLimits

LIMITS = IntakeLimits()
SIZE = (8, 8)


def picture(value: int = 0, *, mode: str = "RGB", size: tuple[int, int] = (8, 8), format: str = "PNG") -> bytes:
    """An encoded picture of noise; the same value gives the same picture."""
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    options = {"lossless": True} if format == "WEBP" else {}
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    def pack(files: Mapping[str, bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return tmp_path / "data.zip"

    return pack


Pack = Callable[[Mapping[str, bytes]], Path]


def load(path: Path, limits: IntakeLimits = LIMITS, size: tuple[int, int] = SIZE) -> ImageSet:
    layout = read_layout(path, limits)
    return read_images(path, layout, layout.class_names, size=size, limits=limits)


def refusal_of(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(RefusedError) as refusal:
        call()
    (problem,) = refusal.value.problems
    return problem.code, problem.detail


# --- layout ----------------------------------------------------------------------------------------------------------


def test_images_come_by_class_and_then_by_name_whatever_their_order_in_the_archive(pack: Pack) -> None:
    names = ["dog/10.png", "cat/2.png", "dog/9.png", "cat/10.png", "ant/1.png"]
    files = {name: picture(i) for i, name in enumerate(names)}
    path = pack(files)
    layout = read_layout(path, LIMITS)
    assert layout.class_names == ("ant", "cat", "dog")
    assert layout.per_class() == {"ant": 1, "cat": 2, "dog": 2}

    found = read_images(path, layout, ("dog", "bee", "ant", "cat"), size=SIZE, limits=LIMITS)
    ordered = ["dog/10.png", "dog/9.png", "ant/1.png", "cat/10.png", "cat/2.png"]
    assert found.labels.tolist() == [0, 0, 2, 3, 3]
    assert found.images.dtype == np.uint8
    assert np.array_equal(found.images, np.stack([pixels_of(files[name]) for name in ordered]))


def test_one_folder_around_the_classes_is_seen_through(pack: Pack) -> None:
    files = {"cat/1.png": picture(1), "dog/1.png": picture(2)}
    bare, around = load(pack(files)), load(pack({f"clean/{name}": data for name, data in files.items()}))
    assert np.array_equal(bare.images, around.images)
    assert np.array_equal(bare.labels, around.labels)


@pytest.mark.parametrize(
    "stray", ["readme.txt", "cat/deep/1.png", "a/b/c/d.png"], ids=["beside the folders", "too deep", "much too deep"]
)
def test_files_outside_a_class_folder_are_named(pack: Pack, stray: str) -> None:
    path = pack({"cat/1.png": picture(), "dog/1.png": picture(), stray: picture()})
    code, detail = refusal_of(lambda: read_layout(path, LIMITS))
    assert code == "archive_layout"
    assert stray in detail


def test_an_archive_of_litter_alone_is_empty(pack: Pack) -> None:
    assert refusal_of(lambda: read_layout(pack({"__MACOSX/cat/1.png": b"x"}), LIMITS))[0] == "archive_empty"


def test_class_names_are_the_same_however_their_accents_are_encoded(pack: Pack) -> None:
    assert read_layout(pack({"e\u0301te\u0301/1.png": picture()}), LIMITS).class_names == ("\u00e9t\u00e9",)


def test_more_class_folders_than_the_limit_are_refused(pack: Pack) -> None:
    path = pack({"cat/1.png": picture(), "dog/1.png": picture()})
    assert refusal_of(lambda: read_layout(path, IntakeLimits(archive_folders=1)))[0] == "archive_layout"


def test_a_class_name_that_no_job_could_name_is_refused(pack: Pack) -> None:
    assert read_layout(pack({f"{'x' * 255}/1.png": picture()}), LIMITS).class_names == ("x" * 255,)
    code, detail = refusal_of(lambda: read_layout(pack({f"{'x' * 256}/1.png": picture()}), LIMITS))
    assert code == "archive_layout"
    assert "xxx" in detail


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_pictures_keep_every_pixel(pack: Pack, format: str) -> None:
    data = picture(format=format)
    assert np.array_equal(load(pack({"cat/1": data})).images[0], pixels_of(picture()))


@pytest.mark.parametrize(("mode", "format"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("CMYK", "JPEG")])
def test_other_modes_become_rgb(pack: Pack, mode: str, format: str) -> None:
    data = picture(mode=mode, format=format)
    assert np.array_equal(load(pack({"cat/1": data})).images[0], pixels_of(data))


def test_every_shade_of_transparency_is_laid_on_black(pack: Pack) -> None:
    shade, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([shade, shade, shade, alpha], axis=-1))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    composed = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    found = load(pack({"cat/1": buffer.getvalue()}), size=(256, 256)).images[0]
    assert np.array_equal(found, np.asarray(composed).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_black(pack: Pack, mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.new("RGBA", (8, 8), (200, 200, 200, 255))
    image.putpixel((1, 0), (200, 200, 200, 0))
    image.convert(mode).save(buffer, "PNG")
    found = load(pack({"cat/1": buffer.getvalue()})).images[0]
    assert found[:, 0, 1].tolist() == [0, 0, 0]
    assert found[:, 0, 0].tolist() == [200, 200, 200]


def test_a_transparent_palette_entry_is_laid_on_black(pack: Pack) -> None:
    buffer = io.BytesIO()
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    image.save(buffer, "PNG", transparency=0)
    found = load(pack({"cat/1": buffer.getvalue()})).images[0]
    assert found[:, 0, 0].tolist() == [0, 0, 0]
    assert found[:, 0, 1].tolist() == [0, 255, 0]


def test_another_size_is_resized_bilinear_with_antialiasing(pack: Pack) -> None:
    data = picture(size=(40, 20))
    found = load(pack({"cat/1": data}), size=(10, 8)).images[0]
    assert found.shape == (3, 10, 8)
    block = pixels_of(data).astype(float)
    assert abs(found.mean() - block.mean()) < 3
    assert found.std() < block.std() / 2  # without antialiasing single pixels would survive


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


CORRUPT = {
    "cut off": truncated(picture(size=(64, 64))),
    "text": b"no picture",
    "nothing": b"",
    "gif": picture(format="GIF"),
    "bmp": picture(format="BMP"),
    "a broken checksum": picture().replace(b"IHDR", b"IHDR\xff"),
    "16 bits": picture(mode="I;16"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_one_corrupt_picture_among_many_is_named(pack: Pack, case: str) -> None:
    path = pack({**{f"cat/{i}.png": picture(i) for i in range(30)}, "dog/odd.png": CORRUPT[case]})
    code, detail = refusal_of(lambda: load(path))
    assert code == "image_unreadable"
    assert "1 of 31" in detail
    assert "'dog/odd.png'" in detail
    assert "cat/" not in detail


def test_of_many_corrupt_pictures_the_first_twenty_are_named_and_all_are_counted(pack: Pack) -> None:
    code, detail = refusal_of(lambda: load(pack({f"cat/{i:03}.png": b"x" for i in range(50)})))
    assert code == "image_unreadable"
    assert "50 of 50" in detail
    assert "cat/019.png" in detail
    assert "cat/020.png" not in detail
    assert "30 more" in detail


def test_of_thousands_of_corrupt_pictures_the_first_thousand_are_enough(pack: Pack) -> None:
    code, detail = refusal_of(lambda: load(pack({f"cat/{i:04}.png": b"x" for i in range(1200)})))
    assert code == "image_unreadable"
    assert "At least 1000 of 1200" in detail


def test_few_bytes_cannot_stand_for_pixels_without_end(pack: Pack) -> None:
    large = flat("1", 5000, 4000, "PNG")
    assert len(load(pack({f"cat/{i}.png": large for i in range(3)})).images) == 3
    path = pack({f"cat/{i}.png": large for i in range(13)})
    assert refusal_of(lambda: load(path, IntakeLimits(pixel_ratio=1)))[0] == "data_too_large"
    assert len(load(path, IntakeLimits(pixel_ratio=10_000)).images) == 13


def test_a_jpeg_that_passes_a_hundred_times_over_its_pixels_is_refused_before_it_does(pack: Pack) -> None:
    data = progressive()
    last = data[data.rindex(b"\xff\xda") : -2]
    path = pack({"cat/1.jpg": data[:-2] + last * 200 + data[-2:]})
    began = time.process_time()
    assert refusal_of(lambda: load(path))[0] == "data_too_large"
    assert time.process_time() - began < 2
    assert len(load(pack({"cat/1.jpg": data})).images) == 1


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(pack: Pack) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")  # past what Pillow itself refuses
    for data, limits in ((buffer.getvalue(), LIMITS), (picture(), IntakeLimits(image_pixels=63))):
        path = pack({"cat/1.png": data})
        assert refusal_of(lambda path=path, limits=limits: load(path, limits))[0] == "image_unreadable"


def test_a_webp_takes_twice_the_memory_and_may_have_half_the_pixels(pack: Pack) -> None:
    limits = IntakeLimits(image_pixels=127)
    assert len(load(pack({"cat/1": picture()}), limits).images) == 1
    code, detail = refusal_of(lambda: load(pack({"cat/1": picture(format="WEBP")}), limits))
    assert code == "image_unreadable"
    assert "more than 63" in detail


def test_pillow_may_not_merely_warn_of_a_bomb(pack: Pack) -> None:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    path = pack({"cat/1.png": buffer.getvalue()})
    assert refusal_of(lambda: load(path, IntakeLimits(image_pixels=10**9)))[0] == "image_unreadable"


def test_images_may_not_take_more_than_the_limit_once_decoded(pack: Pack) -> None:
    path = pack({"cat/1.png": picture(), "cat/2.png": picture()})
    assert load(path, IntakeLimits(decoded_bytes=2 * 3 * 64)).images.shape == (2, 3, 8, 8)
    assert refusal_of(lambda: load(path, IntakeLimits(decoded_bytes=2 * 3 * 64 - 1)))[0] == "data_too_large"


def test_the_same_pixels_have_the_same_digest_in_another_format(pack: Pack) -> None:
    png = load(pack({"cat/1": picture(1), "cat/2": picture(1), "cat/3": picture(2)})).digests()
    webp = load(pack({"dog/1": picture(1, format="WEBP")})).digests()
    assert sorted(png.values()) == [1, 2]
    assert [png[digest] for digest in webp] == [2]


# --- classes ---------------------------------------------------------------------------------------------------------


def layout(**counts: int) -> Layout:
    return Layout("zip", {f"{name}/{i}.png": name for name, count in counts.items() for i in range(count)})


def test_the_classes_are_those_given_or_the_sorted_folders() -> None:
    assert settle_class_names(("b", "a", "c"), layout(a=1), outputs=3) == ("b", "a", "c")
    assert settle_class_names(None, layout(b=1, a=1), outputs=2) == ("a", "b")
    assert settle_class_names(None, layout(b=1, a=1), outputs=None) == ("a", "b")
    assert settle_class_names(None, None, outputs=2) == ()


def test_outputs_and_classes_must_be_as_many() -> None:
    code, detail = refusal_of(lambda: settle_class_names(None, layout(a=1, b=1), outputs=3))
    assert code == "class_count_mismatch"
    assert "3 outputs" in detail
    assert "2 folders" in detail
    assert "class_names" in detail
    with pytest.raises(RefusedError) as refusal:
        settle_class_names(("a", "b"), None, outputs=3)
    assert refusal.value.problems[0].code == "class_count_mismatch"
    assert refusal.value.problems[0].pointer == "/model/class_names"


def test_a_class_name_stands_for_one_output() -> None:
    assert refusal_of(lambda: settle_class_names(("a", "a"), None, outputs=2))[0] == "duplicate_class_name"


def test_a_folder_that_is_no_class_is_named_and_a_class_without_folder_is_told() -> None:
    code, detail = refusal_of(lambda: check_folders(layout(a=1, x=1), ("a", "b")))
    assert code == "unknown_class"
    assert "'x'" in detail
    check_folders(layout(a=1), ("a", "b"))
    assert missing_classes(layout(a=1), ("a", "b")) == ("b",)


def test_tens_of_thousands_of_classes_are_compared_in_a_moment(pack: Pack) -> None:
    names = [f"{number:05}" for number in range(20_000)]
    began = time.process_time()
    assert missing_classes(layout(**{"00000": 1}), names) == tuple(names[1:])
    path = pack({f"{name}/1.png": b"x" for name in names})
    assert refusal_of(lambda: load(path))[0] == "image_unreadable"
    assert time.process_time() - began < 5


@pytest.mark.parametrize("counts", [{"a": 10, "b": 9}, {"a": 30, "b": 1}, {"a": 1}])
def test_too_few_clean_images_are_refused(counts: dict[str, int]) -> None:
    assert refusal_of(lambda: check_enough(layout(**counts)))[0] == "data_too_small"


def test_twenty_clean_images_are_enough() -> None:
    check_enough(layout(a=2, b=18))


def test_the_target_must_be_a_class_and_not_the_only_one_with_triggered_images() -> None:
    with pytest.raises(RefusedError) as refusal:
        check_target(layout(a=1), ("a", "b"), "x")
    assert refusal.value.problems[0].code == "unknown_class"
    assert refusal.value.problems[0].pointer == "/triggered_data/target_class"
    assert refusal_of(lambda: check_target(layout(b=3), ("a", "b"), "b"))[0] == "triggered_only_target"
    check_target(layout(a=1, b=1), ("a", "b"), "b")
