"""Class folders of images, out of an archive, as one array.

What becomes of a picture: PNG, JPEG or WEBP is decoded to 8-bit RGB. Grey and palette images are expanded, transparency
is laid on black, of an animation the first frame is taken, an EXIF orientation is not applied (torchvision's
``ImageFolder`` does not either). Another size than wanted is resized, bilinear with antialiasing. Grey images of more
than 8 bits are refused, since there is no one way to shorten them.
"""

from __future__ import annotations

import hashlib
import io
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.loading.archives import ArchiveFormat, Member, archive_format, members
from worker.loading.refusal import RefusedError, listed, refused
from worker.task import IntakeLimits

_FORMATS = ("PNG", "JPEG", "WEBP")
_OPAQUE = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})
_TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
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
    parts = [member.parts for member in members(path, limits)]
    if not parts:
        raise refused("archive_empty", "The archive holds no images. " + _LAYOUT)
    wrapped = all(len(part) == 3 for part in parts) and len({part[0] for part in parts}) == 1
    depth = 3 if wrapped else 2
    outside = ["/".join(part) for part in parts if len(part) != depth]
    if outside:
        raise refused("archive_layout", f"{len(outside)} files lie in no class folder: {listed(outside)}. {_LAYOUT}")
    return Layout(archive_format(path), {"/".join(part): unicodedata.normalize("NFC", part[-2]) for part in parts})


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
        RefusedError: ``data_too_large``, or ``image_unreadable`` naming every file that cannot be decoded.
    """
    labels = {name: class_names.index(folder) for name, folder in layout.folders.items()}
    places = {name: place for place, name in enumerate(sorted(labels, key=lambda name: (labels[name], name)))}
    images = _allocate(len(places), size, limits)
    unreadable: dict[str, str] = {}
    with _strict_pillow():
        for member in members(path, limits):
            try:
                images[places[member.name]] = _decode(member, size, limits)
            except _UnreadableError as error:
                unreadable[member.name] = str(error)
    if unreadable:
        raise _unreadable(unreadable, total=len(places))
    ordered = np.array([labels[name] for name in places], dtype=np.int64)
    return ImageSet(images, ordered)


class _UnreadableError(Exception):
    """One picture cannot be decoded."""


def _unreadable(reasons: Mapping[str, str], *, total: int) -> RefusedError:
    first = next(iter(reasons.values()))
    return refused(
        "image_unreadable",
        f"{len(reasons)} of {total} files are no readable PNG, JPEG or WEBP image: {listed(sorted(reasons))}. "
        f"The first: {first}. Repair or remove them.",
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


def _decode(member: Member, size: tuple[int, int], limits: IntakeLimits) -> NDArray[np.uint8]:
    data = member.read()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > limits.image_pixels:  # known before a pixel is decoded
                raise _UnreadableError(f"{image.width}×{image.height} pixels are more than {limits.image_pixels}")
            rgb = _to_rgb(image)
            if rgb.size != size[::-1]:
                rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)  # Pillow widens the filter when it shrinks
            return np.asarray(rgb).transpose(2, 0, 1)
    except (MemoryError, _UnreadableError):
        raise
    except Exception as error:
        raise _UnreadableError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, (0, 0, 0, 255)), pixels).convert("RGB")
    if image.mode in _OPAQUE:
        return image.convert("RGB")
    raise _UnreadableError(f"mode {image.mode} is not supported; save it with 8 bits a channel")
