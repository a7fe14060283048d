"""A safetensors header, checked before the library reads it.

The library takes duplicate keys, empty shapes of any size and names with NUL.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from worker.loading.refusal import listed, refused, told

TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
MAX_TENSORS = 20_000
MAX_DIMENSION = 2**31
_HEADER_BYTES = 4 * 1024**2
_METADATA_BYTES = 64 * 1024
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_SAVE_AGAIN = "Write it again with safetensors.torch.save_file."


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose header is not exactly what it should be.

    Raises:
        RefusedError: ``model_truncated``, or ``model_header_invalid`` with all problems of the first kind found.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER_BYTES:
            _invalid(f"it takes {length} bytes, more than {_HEADER_BYTES}")
        if 8 + length > size:
            raise refused("model_truncated", f"The file ends after {size} bytes, within its header. Send it again.")
        header = _parse(file.read(length))
    metadata = header.pop("__metadata__", {})
    _check_metadata(metadata)
    _check_names(header)
    end = _check_extents(header)
    if 8 + length + end > size:
        raise refused("model_truncated", f"The file ends after {size} of {8 + length + end} bytes. Send it again.")
    if 8 + length + end < size:
        _invalid(f"{size - 8 - length - end} bytes follow the last tensor")


def _invalid(detail: str) -> NoReturn:
    raise refused("model_header_invalid", f"The safetensors header is not valid: {detail}. {_SAVE_AGAIN}")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_invalid)
    except (ValueError, RecursionError) as error:
        _invalid(f"no JSON ({told(error)})")
    if not isinstance(header, dict):
        _invalid("no JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_TENSORS + 1:
        _invalid(f"it lists {len(pairs)} tensors, more than {MAX_TENSORS}")
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        _invalid(f"{listed([name for name, count in counts.items() if count > 1])} stands there more than once")
    return result


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _invalid("its metadata are not strings")
    if sum(len(text.encode("utf-8", "surrogatepass")) for pair in metadata.items() for text in pair) > _METADATA_BYTES:
        _invalid(f"its metadata take more than {_METADATA_BYTES} bytes")


def _check_names(header: dict[str, Any]) -> None:
    if not header:
        raise refused("model_no_weights", f"The file holds no tensors. {_SAVE_AGAIN}")
    odd = [name for name in header if not TENSOR_NAME.fullmatch(name)]
    if odd:
        _invalid(f"names are 1 to 256 letters, digits, '_', '.' and '-', which these are not: {listed(odd)}")


def _check_extents(header: dict[str, Any]) -> int:
    """Check dtype, shape and place of every tensor; return where the last one ends."""
    odd = [name for name, entry in header.items() if not _is_sound(entry)]
    if odd:
        _invalid(f"dtype, shape and place do not agree, or are not taken, for {listed(odd)}")
    end = 0
    for start, stop in _places(header):
        if start != end:
            _invalid("tensors overlap or leave gaps")
        end = stop
    return end


def _places(header: dict[str, Any]) -> Iterator[tuple[int, int]]:
    return iter(sorted(tuple(entry["data_offsets"]) for entry in header.values()))


def _is_sound(entry: object) -> bool:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop], **rest}:
            whole = all(type(number) is int for number in (*shape, start, stop))
            return (
                not rest
                and whole
                and dtype in _ITEM_BYTES
                and len(shape) <= 64
                and all(1 <= dimension <= MAX_DIMENSION for dimension in shape)
                and start >= 0
                and stop - start == math.prod(shape) * _ITEM_BYTES[dtype]
            )
    return False
