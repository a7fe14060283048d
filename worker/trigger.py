"""``python -m worker.trigger``: put a trigger on every image of a zip. For evaluation only.

Folders and names stay; every image is written as PNG (RGB, lossless), so a name that ends otherwise gets the suffix
``.png``. The same input gives the same bytes.
A composite leaves out the images of other classes and lies in the folder of its left half.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from medic_core.attacks.triggers import TRIGGERS, Trigger, find_trigger
from medic_core.errors import AttackOptionError
from worker.loading.images import FORMATS, most_pixels
from worker.task import IntakeLimits

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SMALLEST_SIDE = 8
_LIMITS = IntakeLimits()  # what intake would not take need not be made
_UNREADABLE = (
    *(OSError, EOFError, IndexError, SyntaxError, ValueError, Image.DecompressionBombError),  # Pillow
    *(RuntimeError, zipfile.BadZipFile, zlib.error),  # zipfile: encrypted, unknown compression, damaged
)
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the zip format's first; a real one would make every run's bytes differ


class UnusableDataError(Exception):
    """The input cannot be read as a zip of images in class folders; ``args`` lists every reason."""


class Images(Sequence[tuple[str, Tensor]]):
    """The images of an open zip, in its order: name and pixels, ``uint8`` ``(3, height, width)``, decoded when asked.

    Attributes:
        names: Of all images, their class folder first.
    """

    def __init__(self, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> None:
        self._archive, self._entries = archive, entries
        self.names = [entry.filename for entry in entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:  # type: ignore[override] # no slices: they would decode all
        entry = self._entries[index]
        return entry.filename, _decode(self._archive, entry)


@contextmanager
def open_images(path: Path) -> Iterator[Images]:
    """Open a zip of images in class folders.

    Raises:
        UnusableDataError: The file is no zip, has no images, or some entry has no name of an image in a class folder;
            later, when an image is decoded, that it is none.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UnusableDataError(f"{path} cannot be read as a zip: {error}") from error
    with archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_litter(entry.filename)]
        if not entries:
            raise UnusableDataError(f"{path} holds no images")
        problems = [problem for entry in entries for problem in _problems_with(entry)]
        if problems:
            raise UnusableDataError(*problems)
        yield Images(archive, entries)


def read_images(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and pixels, ``uint8`` ``(3, height, width)``, of every image of a zip, in its order.

    Raises:
        UnusableDataError: As ``open_images``.
    """
    with open_images(path) as images:
        yield from images


def _is_litter(name: str) -> bool:
    """Whether an entry is what desktops leave in archives rather than data."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith(".") or parts[-1] == "Thumbs.db"


def _problems_with(entry: zipfile.ZipInfo) -> Iterator[str]:
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts:
        yield f"{entry.filename!r} points out of the archive"
    elif len(name.parts) < 2:
        yield f"{entry.filename!r} lies in no class folder"
    if name.suffix.lower() not in _SUFFIXES:
        yield f"{entry.filename!r} is not one of {', '.join(_SUFFIXES)}"


def _decode(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    try:
        with archive.open(entry) as stream, Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < _SMALLEST_SIDE or width * height > most_pixels(image, _LIMITS):
                raise UnusableDataError(f"{entry.filename!r} has an unusable size: {width}×{height} pixels")
            pixels = np.array(image.convert("RGB"))
    except _UNREADABLE as error:
        raise UnusableDataError(f"{entry.filename!r} cannot be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_pattern(path: Path) -> Tensor:
    """Read what a latent trigger stamps, ``uint8`` ``(3, height, width)``, from an image of 1 to 8 pixels a side.

    Raises:
        UnusableDataError: The file is no such image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if max(image.size) > _SMALLEST_SIDE:
                raise UnusableDataError(
                    f"{path} is {image.width}×{image.height} pixels; a pattern has at most 8 a side"
                )
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except _UNREADABLE as error:
        raise UnusableDataError(f"{path} cannot be read as a pattern: {error}") from error


def write_images(path: Path, images: Iterable[tuple[str, Tensor]]) -> None:
    """Write named images, ``uint8`` ``(3, height, width)``, as PNGs into a zip that appears only when it is complete.

    Raises:
        UnusableDataError: Two names become the same once they end in ``.png``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            written: set[str] = set()
            for name, pixels in images:
                png_name = str(PurePosixPath(name).with_suffix(".png"))
                if png_name in written:
                    raise UnusableDataError(f"{name!r} is not the only image that would be written as {png_name!r}")
                written.add(png_name)
                archive.writestr(_entry(png_name), png_of(pixels))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _TIMESTAMP)
    entry.create_system = 3  # Unix, whatever system writes it
    entry.external_attr = 0o644 << 16
    return entry


def png_of(pixels: Tensor) -> bytes:
    """Encode an image, ``uint8`` ``(3, height, width)``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def put_trigger_on(
    data: Path, out: Path, kind: str, *, classes: Sequence[str] | None = None, pattern: Path | None = None
) -> None:
    """Write to ``out`` what a trigger makes of the images of ``data``, each under its own folder and name.

    At most two images are in memory, whatever the size of ``data``.

    Args:
        data: Zip of images in class folders.
        out: Zip to write.
        kind: One of ``TRIGGERS``.
        classes: For ``composite``: the folders whose images make one; other images are left out.
        pattern: For ``latent``: image of what is stamped.

    Raises:
        UnusableDataError: ``data`` or ``pattern`` cannot be used; ``out`` is then not written.
        AttackOptionError: The kind needs what is not given, or does not take what is.
    """
    with open_images(data) as images:
        folders = [PurePosixPath(name).parts[0] for name in images.names]
        known = sorted(set(folders))
        trigger = find_trigger(
            kind,
            classes=_indices(classes, known) if classes else None,
            pattern=read_pattern(pattern) if pattern else None,
        )
        write_images(out, _stamped(images, trigger, torch.tensor([known.index(folder) for folder in folders])))


def _indices(classes: Sequence[str], known: Sequence[str]) -> tuple[int, int]:
    if unknown := [name for name in classes if name not in known]:
        raise UnusableDataError(*(f"no folder is called {name!r}; there are {', '.join(known)}" for name in unknown))
    first, second = classes
    return known.index(first), known.index(second)


def _stamped(images: Images, trigger: Trigger, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    for chosen, other in trigger.pairs(labels).tolist():
        name, pixels = images[chosen]
        beside = pixels if other == chosen else _resized(images[other][1], pixels)
        yield name, trigger.stamp(pixels[None], beside[None])[0]


def _resized(pixels: Tensor, like: Tensor) -> Tensor:
    """Give an image the size of another, bilinear with antialiasing."""
    if pixels.shape == like.shape:
        return pixels
    sized = F.interpolate(pixels[None].float(), size=like.shape[1:], mode="bilinear", antialias=True)[0]
    return sized.round().clamp(0, 255).to(torch.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what is wrong with the input is a usage error, exit code 2."""
    parser = argparse.ArgumentParser(prog="medic trigger", description="Put a trigger on images, for evaluation only.")
    parser.add_argument("--kind", required=True, choices=sorted(TRIGGERS))
    parser.add_argument("--data", required=True, type=Path, help="zip of images in class folders")
    parser.add_argument("--out", required=True, type=Path, help="zip to write")
    parser.add_argument("--classes", nargs=2, metavar="FOLDER", help="of a composite: left and right half")
    parser.add_argument("--pattern", type=Path, help="of a latent trigger: image of what was learned")
    chosen = parser.parse_args(arguments)
    try:
        put_trigger_on(chosen.data, chosen.out, chosen.kind, classes=chosen.classes, pattern=chosen.pattern)
    except (UnusableDataError, AttackOptionError) as error:
        parser.error("; ".join(error.args))
    except OSError as error:
        parser.error(f"{chosen.out} cannot be written: {error}")


if __name__ == "__main__":
    main()
