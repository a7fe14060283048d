"""``python -m worker.trigger``: put a trigger on every image of a zip. For evaluation only.

The zip is read as intake reads it: to a job, the trigger is all that differs. Folders and names stay; every image is
written as PNG (RGB, lossless), so a name that ends otherwise gets the suffix ``.png``. The same input gives the same
bytes.
A composite leaves out the images of other classes and lies in the folder of its left half.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from medic_core.attacks.triggers import TRIGGERS, Trigger, find_trigger
from medic_core.errors import AttackOptionError
from worker.loading.archives import Member, members
from worker.loading.images import Layout, PixelCount, UnreadableError, decode, read_layout
from worker.loading.refusal import RefusedError
from worker.task import IntakeLimits

_SMALLEST_SIDE = 8
_LIMITS = IntakeLimits()  # what intake would not take need not be made
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the zip format's first; a real one would make every run's bytes differ


class UnusableDataError(Exception):
    """No trigger can be put on the input; ``args`` lists every reason."""


class Images(Sequence[tuple[str, Tensor]]):
    """The images of an open zip, in its order: name and pixels, ``uint8`` ``(3, height, width)``, decoded when asked.

    Attributes:
        folders: The class folder of each.
    """

    def __init__(self, members: Sequence[Member], layout: Layout, pixels: PixelCount) -> None:
        self._members, self._pixels = members, pixels
        self.folders = [layout.folders[member.name] for member in members]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:  # type: ignore[override] # no slices: they would decode all
        member = self._members[index]
        try:
            pixels = _decode(member.read(), self._pixels)
        except UnreadableError as error:
            raise UnusableDataError(f"{member.name!r} cannot be decoded: {error}") from error
        if min(pixels.shape[1:]) < _SMALLEST_SIDE:
            raise UnusableDataError(f"{member.name!r} has fewer than {_SMALLEST_SIDE} pixels a side")
        return member.name, pixels


@contextmanager
def open_images(path: Path) -> Iterator[Images]:
    """Open a zip of images in class folders, as intake reads it.

    Raises:
        UnusableDataError: The file cannot be read or is no zip; later, an image cannot be decoded.
        RefusedError: Intake would refuse the archive.
    """
    try:
        layout, packed = read_layout(path, _LIMITS), path.stat().st_size
    except OSError as error:
        raise UnusableDataError(f"{path} cannot be read: {error}") from error
    if layout.format != "zip":
        raise UnusableDataError(f"{path} is no zip")
    with closing(members(path, _LIMITS)) as found:
        kept = list(islice(found, len(layout.folders)))  # not to the end, where the zip would be closed
        yield Images(kept, layout, PixelCount(_LIMITS, packed))


def read_images(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and pixels, ``uint8`` ``(3, height, width)``, of every image of a zip, in its order.

    Raises:
        UnusableDataError, RefusedError: As ``open_images``.
    """
    with open_images(path) as images:
        yield from images


def read_pattern(path: Path) -> Tensor:
    """Read what a latent trigger stamps, ``uint8`` ``(3, height, width)``, from an image of 1 to 8 pixels a side.

    Raises:
        UnusableDataError: The file is no such image.
    """
    try:
        pattern = _decode(path.read_bytes(), PixelCount(_LIMITS, packed=0))
    except (OSError, UnreadableError) as error:
        raise UnusableDataError(f"{path} cannot be read as a pattern: {error}") from error
    height, width = pattern.shape[1:]
    if max(height, width) > _SMALLEST_SIDE:
        raise UnusableDataError(f"{path} is {width}×{height} pixels; a pattern has at most {_SMALLEST_SIDE} a side")
    return pattern


def _decode(data: bytes, pixels: PixelCount) -> Tensor:
    return torch.from_numpy(decode(data, pixels).copy())  # Pillow's own memory is not to be written to


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
        UnusableDataError, RefusedError: ``data`` or ``pattern`` cannot be used; ``out`` is then not written.
        AttackOptionError: The kind needs what is not given, or does not take what is.
    """
    with open_images(data) as images:
        known = sorted(set(images.folders))
        trigger = find_trigger(
            kind,
            classes=_indices(classes, known) if classes else None,
            pattern=read_pattern(pattern) if pattern else None,
        )
        write_images(out, _stamped(images, trigger, torch.tensor([known.index(folder) for folder in images.folders])))


def _indices(classes: Sequence[str], known: Sequence[str]) -> tuple[int, int]:
    if unknown := [name for name in classes if name not in known]:
        raise UnusableDataError(*(f"no folder is called {name!r}; there are {', '.join(known)}" for name in unknown))
    first, second = classes
    return known.index(first), known.index(second)


def _stamped(images: Images, trigger: Trigger, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    problems: dict[str, None] = {}  # each once: several images may need the same other
    for chosen, other in trigger.pairs(labels).tolist():
        try:
            name, pixels = images[chosen]
            beside = pixels if other == chosen else _resized(images[other][1], pixels)
        except UnusableDataError as error:
            problems |= dict.fromkeys(error.args)
            continue
        yield name, trigger.stamp(pixels[None], beside[None])[0]
    if problems:
        raise UnusableDataError(*problems)


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
    except (UnusableDataError, RefusedError, AttackOptionError) as error:
        parser.error("; ".join(error.args))
    except OSError as error:
        parser.error(f"{chosen.out} cannot be written: {error}")


if __name__ == "__main__":
    main()
