"""Class folders of images, out of an archive, as one array.

What becomes of a picture: PNG, JPEG or WEBP is decoded to 8-bit RGB. Grey and palette images are expanded, transparency
is laid on black, of an animation the first frame is taken, an EXIF orientation is not applied (torchvision's
``ImageFolder`` does not either). Another size than wanted is resized, bilinear with antialiasing. Grey images of more
than 8 bits are refused, since there is no one way to shorten them.
"""

from __future__ import annotations

import hashlib
import io
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.loading.archives import ArchiveFormat, archive_format, members
from worker.loading.refusal import RefusedError, listed, refused, told
from worker.task import IntakeLimits

_FORMATS = ("PNG", "JPEG", "WEBP")
_WEBP_COPIES = 2  # of the memory of other formats: its decoder keeps several canvases
_START_OF_SCAN = b"\xff\xda"
_OPAQUE = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})
_TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_CLASS_NAME_CHARACTERS = 255
_MOST_UNREADABLE = 1000
_FREE_PIXELS = 250_000_000
_SCANS_PER_DECODING = 10  # so many passes over a JPEG take as long as to decode its pixels once
_LAYOUT = "Pack images as class/name.png, one folder a class, at most one more folder around all of them."


@dataclass(frozen=True)
class Layout:
    """Which images an archive holds: the class folder of every file, by the path in the archive."""

    format: ArchiveFormat
    folders: Mapping[str, str]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the folders, sorted as strings."""
        return tuple(sorted(set(self.folders.values())))

    def per_class(self) -> dict[str, int]:
        """How many files lie in each folder."""
        return dict(sorted(Counter(self.folders.values()).items()))


@dataclass(frozen=True)
class ImageSet:
    """Images, ``uint8`` ``(n, 3, height, width)``, and labels, ``int64`` ``(n,)``; by class, then by name."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def digests(self) -> Counter[bytes]:
        """How often each picture occurs, by a hash of its pixels."""
        return Counter(hashlib.blake2b(image.data, digest_size=16).digest() for image in self.images)


def read_layout(path: Path, limits: IntakeLimits) -> Layout:
    """Find the class folder of every file in an archive, decoding none.

    Raises:
        RefusedError: ``archive_layout`` or ``archive_empty``, beside what `members` raises.
    """
    places = [_Place.of(member.parts) for member in members(path, limits)]
    if not places:
        raise refused("archive_empty", "The archive holds no images. " + _LAYOUT)
    wrapped = all(place.depth == 3 for place in places) and len({place.top for place in places}) == 1
    depth = 3 if wrapped else 2
    outside = [place.name for place in places if place.depth != depth]
    if outside:
        raise refused("archive_layout", f"{len(outside)} files lie in no class folder: {listed(outside)}. {_LAYOUT}")
    _check_folders({place.folder for place in places}, limits)
    return Layout(archive_format(path), {place.name: place.folder for place in places})


class _Place(NamedTuple):
    """Where a file lies in an archive; its parts one by one would take far more memory than the path."""

    name: str
    depth: int
    top: str
    folder: str

    @classmethod
    def of(cls, parts: tuple[str, ...]) -> _Place:
        folder = unicodedata.normalize("NFC", parts[-2]) if len(parts) > 1 else ""
        return cls("/".join(parts), len(parts), parts[0], sys.intern(folder))


def _check_folders(folders: Collection[str], limits: IntakeLimits) -> None:
    if len(folders) > limits.archive_folders:
        raise refused(
            "archive_layout",
            f"There are {len(folders)} class folders; at most {limits.archive_folders} are taken. {_LAYOUT}",
        )
    long = [folder for folder in folders if len(folder) > _CLASS_NAME_CHARACTERS]
    if long:
        raise refused(
            "archive_layout",
            f"Names of classes have more than {_CLASS_NAME_CHARACTERS} characters: {listed(sorted(long))}. {_LAYOUT}",
        )


def read_images(
    path: Path, layout: Layout, class_names: Sequence[str], *, size: tuple[int, int], limits: IntakeLimits
) -> ImageSet:
    """Decode every image of an archive.

    Args:
        path: The archive that ``layout`` was read from.
        layout: Its files; every folder must be among ``class_names``.
        class_names: In the order of the labels.
        size: Height and width of the result.
        limits: Of pixels per picture and of bytes in all.

    Raises:
        RefusedError: ``data_too_large``, in memory or for more pixels than the bytes can account for; or
            ``image_unreadable`` naming every file that cannot be decoded, up to a thousand.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = {name: numbers[folder] for name, folder in layout.folders.items()}
    places = {name: place for place, name in enumerate(sorted(labels, key=lambda name: (labels[name], name)))}
    images = _allocate(len(places), size, limits)
    unreadable: dict[str, str] = {}
    pixels = PixelCount(limits, path.stat().st_size)
    for member in members(path, limits):
        try:
            images[places[member.name]] = decode(member.read(), pixels, size=size)
        except UnreadableError as error:
            unreadable[member.name] = str(error)
            if len(unreadable) == _MOST_UNREADABLE:
                break
    if unreadable:
        raise _unreadable(unreadable, total=len(places))
    ordered = np.array([labels[name] for name in places], dtype=np.int64)
    return ImageSet(images, ordered)


class UnreadableError(Exception):
    """One picture cannot be decoded."""


class PixelCount:
    """Counts what is to be decoded: bytes can stand for a thousand pixels each, and then take minutes a megabyte."""

    def __init__(self, limits: IntakeLimits, packed: int) -> None:
        self._limits = limits
        self._most = max(_FREE_PIXELS, limits.pixel_ratio * packed)
        self._count = 0

    def add(self, image: Image.Image, data: bytes) -> None:
        """Count a picture before it is decoded; its size is known by then.

        Raises:
            UnreadableError: It is too large by itself.
            RefusedError: ``data_too_large``, with the others it is.
        """
        pixels = image.width * image.height
        most = self._limits.image_pixels // (_WEBP_COPIES if image.format == "WEBP" else 1)
        if pixels > most:
            raise UnreadableError(f"{image.width}×{image.height} pixels are more than {most}")
        scans = 0 if image.format in ("PNG", "WEBP") else data.count(_START_OF_SCAN)
        self._count += pixels * (1 + scans // _SCANS_PER_DECODING)
        if self._count > self._most:
            raise refused(
                "data_too_large",
                f"The images have more pixels, or pass over them more often, than {self._limits.pixel_ratio} times the "
                "bytes of the archive. Send images with less of one colour, or at the model's input size.",
            )


def _unreadable(reasons: Mapping[str, str], *, total: int) -> RefusedError:
    first = next(iter(reasons.values()))
    least = "At least " if len(reasons) == _MOST_UNREADABLE else ""
    return refused(
        "image_unreadable",
        f"{least}{len(reasons)} of {total} files are no readable PNG, JPEG or WEBP image: {listed(sorted(reasons))}. "
        f"The first: {first}. Repair, shrink or remove them.",
    )


def _allocate(count: int, size: tuple[int, int], limits: IntakeLimits) -> NDArray[np.uint8]:
    needed = count * 3 * size[0] * size[1]
    if needed > limits.decoded_bytes:
        raise refused(
            "data_too_large",
            f"{count} images of {size[0]}×{size[1]} pixels take {needed} bytes; at most {limits.decoded_bytes} are "
            "taken. Send fewer images.",
        )
    return np.empty((count, 3, *size), dtype=np.uint8)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow only warns of a decompression bomb; of all else that it warns of, nothing matters here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(data: bytes, pixels: PixelCount, *, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode a picture, as ``(3, height, width)``.

    Args:
        data: The file.
        pixels: Counts it.
        size: Height and width of the result; those of the picture if None.

    Raises:
        UnreadableError: It cannot be decoded, or is too large.
        RefusedError: As `PixelCount.add`.
    """
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels.add(image, data)
            rgb = _to_rgb(image)
            if size and rgb.size != size[::-1]:
                rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)  # Pillow widens the filter when it shrinks
            return np.asarray(rgb).transpose(2, 0, 1)
    except (MemoryError, UnreadableError, RefusedError):
        raise
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {told(error)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        pixels = image if image.mode == "RGBA" else image.convert("RGBA")
        black = Image.new("RGB", pixels.size)
        black.paste(pixels, mask=pixels)
        return black
    if image.mode in _OPAQUE:
        return image if image.mode == "RGB" else image.convert("RGB")
    raise UnreadableError(f"mode {image.mode} is not supported; save it with 8 bits a channel")
