"""``python -m worker.trigger``: put a trigger on every image of a zip. For evaluation only.

Folders and names stay; every image is written as PNG (RGB, lossless), so a name that ends otherwise gets the suffix
``.png``. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medic_core.attacks.triggers import TRIGGERS, Trigger

_FORMATS = ("PNG", "JPEG", "WEBP")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SMALLEST_SIDE = 8
_PIXEL_LIMIT = 50_000_000
_UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError),  # Pillow
    *(RuntimeError, zipfile.BadZipFile, zlib.error),  # zipfile: encrypted, unknown compression, damaged
)
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the zip format's first; a real one would make every run's bytes differ


class UnusableDataError(Exception):
    """The input cannot be read as a zip of images in class folders; ``args`` lists every reason."""


def read_images(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and pixels, ``uint8`` ``(3, height, width)``, of every image of a zip, in its order.

    Raises:
        UnusableDataError: The file is no zip, has no images, or some entry is no image in a class folder.
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
        for entry in entries:
            yield entry.filename, _decode(archive, entry)


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
        with archive.open(entry) as stream, Image.open(stream, formats=_FORMATS) as image:
            width, height = image.size
            if min(width, height) < _SMALLEST_SIDE or width * height > _PIXEL_LIMIT:
                raise UnusableDataError(f"{entry.filename!r} has an unusable size: {width}×{height} pixels")
            pixels = np.array(image.convert("RGB"))
    except _UNREADABLE as error:
        raise UnusableDataError(f"{entry.filename!r} cannot be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


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
                archive.writestr(_entry(png_name), _encode(pixels))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _TIMESTAMP)
    entry.create_system = 3  # Unix, whatever system writes it
    entry.external_attr = 0o644 << 16
    return entry


def _encode(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def put_trigger_on(data: Path, out: Path, trigger: Trigger) -> None:
    """Write to ``out`` every image of ``data`` with ``trigger`` on, under its own folder and name.

    Raises:
        UnusableDataError: ``data`` cannot be used; ``out`` is then not written.
    """
    write_images(out, ((name, trigger(pixels[None])[0]) for name, pixels in read_images(data)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what is wrong with the input is a usage error, exit code 2."""
    parser = argparse.ArgumentParser(prog="medic trigger", description="Put a trigger on images, for evaluation only.")
    parser.add_argument("--kind", required=True, choices=sorted(TRIGGERS))
    parser.add_argument("--data", required=True, type=Path, help="zip of images in class folders")
    parser.add_argument("--out", required=True, type=Path, help="zip to write")
    chosen = parser.parse_args(arguments)
    try:
        put_trigger_on(chosen.data, chosen.out, TRIGGERS[chosen.kind])
    except UnusableDataError as error:
        parser.error("; ".join(error.args))
    except OSError as error:
        parser.error(f"{chosen.out} cannot be written: {error}")


if __name__ == "__main__":
    main()
