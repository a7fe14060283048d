"""What a model file is, by its first bytes, whatever its name; and what to do with one that is not taken."""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

from worker.loading.refusal import RefusedError, listed, refused, told
from worker.loading.zips import DAMAGED, is_encrypted, opened_zip

ModelFormat = Literal["safetensors", "torch-zip", "torch-legacy"]

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_ZIP_ENTRIES = 100_000
_PICKLE_BYTES = 32 * 1024**2
_HEAD_BYTES = 4096
_PICKLE_STEPS = 2_000_000  # some 40 a tensor; a checkpoint with the state of its optimizer holds a few thousand
_LEGACY_PICKLES = 5
_ZIP_HEADER_BYTES = 30
_ZIP_NAME_LENGTHS = 26
_END = struct.Struct("<4s6xH4xI2x")  # mark, entries, offset of the directory
_LOCATOR = struct.Struct("<4s4xQ4x")  # mark, offset of the end record for large files
_END64 = struct.Struct("<4s28xQ8xQ")  # mark, entries, offset of the directory

SEND_WEIGHTS = (
    'Send the weights alone: safetensors.torch.save_file(model.state_dict(), "model.safetensors") or '
    'torch.save(model.state_dict(), "model.pth").'
)

_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "model_format_hdf5", "This is HDF5, as Keras writes it."),
    (0, b"GGUF", "model_format_gguf", "This is GGUF, which holds quantized weights."),
    (0, b"\x1f\x8b", "model_format_unknown", "This is a gzip file; a model is sent unpacked."),
    (257, b"ustar", "model_format_unknown", "This is a tar archive; a model is sent unpacked."),
    (0, b"version https://git-lfs", "model_format_unknown", "This is a Git LFS pointer: run git lfs pull first."),
    (0, b"\x93NUMPY", "model_format_unknown", "This is a NumPy array."),
    (0, b"\x08\x01\x12", "model_format_saved_model", "This is a TensorFlow SavedModel."),
)
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]")
_PLAIN_GLOBALS = re.compile(
    r"(collections (OrderedDict|Counter)|torch\._utils _rebuild_\w+|torch (\w*Storage|Size|device|\w*\d+|bool)|"
    r"torch\.storage \w*Storage|torch\.nn\.parameter Parameter|_codecs encode|torch\.serialization _get_layout)"
)


def recognise(path: Path) -> ModelFormat:
    """Tell what kind of model file it is.

    Raises:
        RefusedError: It is none that is taken; the code says what it is instead and the text what to do.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise refused("model_empty", "The file is empty. " + SEND_WEIGHTS)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _recognise_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return "torch-legacy"
    if head[8:9] == b"{" and not _is_text(head[:8]):
        return "safetensors"
    for offset, magic, code, words in _MAGICS:
        if head.startswith(magic, offset):
            raise refused(code, f"{words} {SEND_WEIGHTS}")
    if _ONNX.match(head):
        raise refused(
            "model_format_onnx", f"This is ONNX, whose exports fold layers together. Go back to PyTorch. {SEND_WEIGHTS}"
        )
    _refuse_unknown(path, head)


def _refuse_unknown(path: Path, head: bytes) -> NoReturn:
    with path.open("rb") as file:
        content = scan_pickles(file, pickles=1)
    # a text may begin like a pickle of protocol 0, but does not end like one
    if content.unsafe and (content.complete or head.startswith(b"\x80")):
        raise unsafe_globals(content.unsafe)
    if content.complete and head.startswith(b"\x80"):
        raise refused("model_format_unknown", f"This is a pickle that torch.save did not write. {SEND_WEIGHTS}")
    if LEGACY_MAGIC.startswith(head):
        raise refused("model_truncated", f"The file is cut off after {len(head)} bytes. Send it again.")
    kind = "a text file" if _is_text(head) else "no model file that is known here"
    raise refused("model_format_unknown", f"This is {kind}. {SEND_WEIGHTS}")


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) >= len(head) - 3 and all(letter.isprintable() or letter.isspace() for letter in text)


# --- zip -------------------------------------------------------------------------------------------------------------


def _recognise_zip(path: Path) -> ModelFormat:
    try:
        with opened_zip(path, entries=_ZIP_ENTRIES, code="model_container_invalid") as archive:
            entries = archive.infolist()
            _refuse_other_zips([entry.orig_filename for entry in entries])
            _check_zip(entries, archive.comment, path.stat().st_size)
            _check_end(path, archive.start_dir, len(entries))
    except DAMAGED as error:
        raise refused("model_truncated", f"The file is cut off or damaged: {told(error)}. Send it again.") from error
    return "torch-zip"


def _refuse_other_zips(names: Collection[str]) -> None:
    """Tell PyTorch's checkpoints from all else that is a zip inside."""
    last = {name.rsplit("/", 1)[-1] for name in names}
    below = {name.split("/", 1)[-1] for name in names}
    if "archive_format" in below or "serialized_exported_program.json" in last:
        raise refused("model_format_pt2", f"This is an exported program (.pt2), which can run code. {SEND_WEIGHTS}")
    if "constants.pkl" in below or any(name.startswith("code/") for name in below):
        raise refused("model_format_torchscript", f"This is TorchScript, which holds code. {SEND_WEIGHTS}")
    if "model.weights.h5" in last:
        raise refused("model_format_hdf5", f"This is a Keras model. {SEND_WEIGHTS}")
    if "saved_model.pb" in last:
        raise refused("model_format_saved_model", f"This is a TensorFlow SavedModel. {SEND_WEIGHTS}")
    if sum(map(_is_pickle, names)) != 1:
        raise refused("model_format_unknown", f"This is a zip, but none that torch.save wrote. {SEND_WEIGHTS}")


def _is_pickle(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _check_zip(entries: list[zipfile.ZipInfo], comment: bytes, size: int) -> None:
    """Allow only what ``torch.save`` writes: all of it stored, side by side, from the first byte on.

    ``torch.load`` inflates compressed entries without a limit, and reads the directory with a parser of its own.
    """
    names = [entry.orig_filename for entry in entries]
    folder = names[0].split("/", 1)[0]
    odd = [
        entry.orig_filename
        for entry in entries
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or is_encrypted(entry)
    ]
    if odd:
        raise refused(
            "model_container_compressed",
            f"{len(odd)} parts of the file are compressed or encrypted, which torch.save never does: {listed(odd)}. "
            + SEND_WEIGHTS,
        )
    if (
        comment
        or min(entry.header_offset for entry in entries) != 0
        or max(entry.header_offset + _ZIP_HEADER_BYTES + entry.file_size for entry in entries) > size
        or sum(entry.file_size for entry in entries) > size
        or len(set(names)) != len(names)
        or any(not name.startswith(folder + "/") or ".." in name or "\0" in name for name in names)
    ):
        raise refused("model_container_invalid", f"The file is a zip such as torch.save never writes. {SEND_WEIGHTS}")
    if any(entry.file_size > _PICKLE_BYTES for entry in entries if entry.orig_filename == f"{folder}/data.pkl"):
        raise refused("model_container_invalid", f"Its pickle takes more than {_PICKLE_BYTES} bytes. {SEND_WEIGHTS}")


def _check_end(path: Path, start: int, entries: int) -> None:
    """Refuse an end record that leads to another directory than the one read here: ``torch.load`` would follow it.

    Args:
        path: A zip without comment.
        start: Where the directory begins that was read.
        entries: How many it has.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _END64.size - _LOCATOR.size - _END.size))
        tail = file.read()
    _, total, offset = _END.unpack(tail[-_END.size :])
    sound = (total, offset) == (entries, start)
    if tail[-_END.size - _LOCATOR.size :].startswith(b"PK\6\7"):
        place = size - _END.size - _LOCATOR.size - _END64.size
        _, end64 = _LOCATOR.unpack(tail[-_END.size - _LOCATOR.size : -_END.size])
        _, total64, start64 = _END64.unpack(tail[: _END64.size])
        sound = (end64, total64, start64) == (place, entries, start) and total in (entries, 2**16 - 1)
        sound = sound and offset in (start, 2**32 - 1)
    if not sound:
        raise refused("model_container_invalid", f"The end of the zip leads to another directory. {SEND_WEIGHTS}")


# --- pickles, only ever looked at ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PickleContent:
    """What a pickle would import, whether it ends properly, and whether it has more steps than any model needs."""

    unsafe: tuple[str, ...]
    complete: bool
    endless: bool = False


def unsafe_globals(names: Collection[str]) -> RefusedError:
    """The refusal of a pickle that asks for more than tensors."""
    return refused(
        "model_unsafe_globals",
        f"The file asks to run or build more than tensors, and was not loaded: {listed(sorted(names))}. {SEND_WEIGHTS}",
    )


def scan_checkpoint(path: Path, kind: ModelFormat) -> PickleContent:
    """Look through the pickles of a PyTorch checkpoint, which may be a reason not to load it, and never one to do so.

    Raises:
        RefusedError: ``model_container_invalid``, they take more steps than any model needs.
    """
    content = _scan_legacy(path) if kind == "torch-legacy" else _scan_zip(path)
    if content.endless:
        raise refused(
            "model_container_invalid", f"Its pickle takes more than {_PICKLE_STEPS} steps to read. {SEND_WEIGHTS}"
        )
    return content


def _scan_legacy(path: Path) -> PickleContent:
    with path.open("rb") as file:
        return scan_pickles(file, pickles=_LEGACY_PICKLES)


def _scan_zip(path: Path) -> PickleContent:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = next(entry for entry in archive.infolist() if _is_pickle(entry.orig_filename))
        file.seek(entry.header_offset + _ZIP_NAME_LENGTHS)  # read past zipfile, which stops at a wrong checksum
        file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
        return scan_pickles(io.BytesIO(file.read(entry.file_size)), pickles=1)


def scan_pickles(file: BinaryIO, *, pickles: int) -> PickleContent:
    """List what the first ``pickles`` pickles of a file import beyond what tensors need. Nothing is executed."""
    content = io.BytesIO(file.read(_PICKLE_BYTES))
    unsafe: dict[str, None] = {}
    strings: list[str] = []
    steps = 0
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(content):
                steps += 1
                if steps > _PICKLE_STEPS:
                    return PickleContent(tuple(unsafe), complete=False, endless=True)
                if opcode.name in ("GLOBAL", "INST"):
                    _note(unsafe, str(argument))
                elif opcode.name == "STACK_GLOBAL":
                    _note(unsafe, " ".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, struct.error, OverflowError):
        return PickleContent(tuple(unsafe), complete=False)
    return PickleContent(tuple(unsafe), complete=True)


def _note(unsafe: dict[str, None], name: str) -> None:
    if not _PLAIN_GLOBALS.fullmatch(name):
        unsafe[name.replace(" ", ".", 1)] = None
