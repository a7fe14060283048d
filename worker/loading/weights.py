"""The tensors of a model file that someone sent, and nothing else of it; and a twin of that file with other tensors."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.exhaustion import is_out_of_memory, memory_at_most
from worker.loading.formats import SEND_WEIGHTS, ModelFormat, PickleContent, recognise, scan_checkpoint, unsafe_globals
from worker.loading.refusal import RefusedError, listed, refused, told
from worker.loading.safetensors_header import MAX_DIMENSION, MAX_TENSORS, TENSOR_NAME, check_header
from worker.task import Container, IntakeLimits

WRAPPERS = ("state_dict", "model", "net", "net_state_dict", "model_state_dict", "ema")
PREFIXES = ("module.", "_orig_mod.")
_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    }
)
_WRAPPED_DEPTH = 3
_PREFIX_DEPTH = 4
_MOST_DIMENSIONS = 64
_SPARE_BYTES = 256 * 1024**2
_CHUNK_ELEMENTS = 2**22
_UNREADABLE = "The checkpoint is damaged or was not written by torch.save"


@dataclass(frozen=True)
class Weights:
    """Named tensors, contiguous and each with memory of its own, and how they lay in their file."""

    tensors: Mapping[str, Tensor]
    container: Container
    warnings: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def load_weights(path: Path, limits: IntakeLimits) -> Weights:
    """Load a model file without running anything that it says.

    Raises:
        RefusedError: Its code begins with ``model_``, or is ``input_too_large``.
        MemoryError: Loading takes more than this process may have.
    """
    kind = recognise(path)
    loaded = _load_safetensors(path) if kind == "safetensors" else _load_checkpoint(path, kind)
    wrapper, content, notes = _unwrap(loaded)
    prefix, named = _without_prefix(content)
    _check_tensors(named, limits, file_bytes=path.stat().st_size)
    _check_finite(named)
    container = Container(format="safetensors" if kind == "safetensors" else "torch", wrapper=wrapper, prefix=prefix)
    return Weights(dict(_owned(named)), container, notes)


def write_twin(path: Path, tensors: Mapping[str, Tensor], container: Container) -> None:
    """Write tensors the way `load_weights` found them: same kind of file, wrapper and prefix, and the weights alone.

    A checkpoint of PyTorch's older formats is written in today's.
    """
    named = {container.prefix + name: tensor.detach() for name, tensor in tensors.items()}
    if container.format == "safetensors":
        save_file(dict(_owned(named)), path, metadata={"format": "pt"})
        return
    content: dict[str, Any] = dict(named)
    for key in reversed(container.wrapper):
        content = {key: content}
    torch.save(content, path)


# --- files -----------------------------------------------------------------------------------------------------------


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    check_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise refused(
            "model_header_invalid", f"The safetensors file is not valid: {told(error)}. {SEND_WEIGHTS}"
        ) from error


def _load_checkpoint(path: Path, kind: ModelFormat) -> object:
    content = scan_checkpoint(path, kind)
    if not content.complete:
        raise unsafe_globals(content.unsafe) if content.unsafe else _cut_off()
    try:
        with (
            path.open("rb") as file,  # by its name, torch.load would take a *.safetensors for one
            warnings.catch_warnings(action="ignore"),
            memory_at_most(2 * path.stat().st_size + _SPARE_BYTES),  # few bytes can ask for gigabytes
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise _refusal_of_checkpoint(content, error) from error


def _refusal_of_checkpoint(content: PickleContent, error: Exception) -> RefusedError:
    if content.unsafe and isinstance(error, pickle.UnpicklingError):
        return unsafe_globals(content.unsafe)
    if "unexpected EOF" in str(error):
        return _cut_off()
    return refused("model_unreadable", f"{_UNREADABLE} ({type(error).__name__}: {told(error)}). {SEND_WEIGHTS}")


def _cut_off() -> RefusedError:
    return refused("model_truncated", "The file is cut off or damaged. Send it again.")


# --- wrappers and prefixes -------------------------------------------------------------------------------------------


def _unwrap(loaded: object) -> tuple[tuple[str, ...], dict[str, Tensor], tuple[str, ...]]:
    """Find the dictionary of tensors; return the keys that lead to it, its tensors, and what to warn of."""
    found = _tensor_sets(loaded, _WRAPPED_DEPTH, set())
    if not found:
        inside = f"under these keys: {listed(list(_entries(loaded)))}" if isinstance(loaded, dict) else "in it"
        raise refused("model_no_weights", f"No dictionary of tensors was found {inside}. {SEND_WEIGHTS}")
    wrapper, tensors = found[0]
    several = "The checkpoint holds several sets of weights; the first of these was taken: "
    notes = (several + listed([".".join(path) for path, _ in found]),) if len(found) > 1 else ()
    return wrapper, tensors, notes


def _tensor_sets(value: object, depth: int, seen: set[int]) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """List what holds tensors, each dictionary once, by the wrapper keys that lead there first.

    A pickle can make a dictionary contain itself, under every key.
    """
    if id(value) in seen:
        return []
    seen.add(id(value))
    entries = _entries(value)
    keys = [key for key in WRAPPERS if key in entries] if depth > 0 else []
    inner = [((key, *path), tensors) for key in keys for path, tensors in _tensor_sets(entries[key], depth - 1, seen)]
    own = {name: _plain(entry) for name, entry in entries.items() if isinstance(entry, Tensor)}
    return inner or ([((), own)] if own else [])


def _entries(value: object) -> dict[str, Any]:
    """The entries under strings; a pickle can give an ``OrderedDict`` attributes that hide its methods."""
    return {key: inner for key, inner in dict.items(value) if isinstance(key, str)} if isinstance(value, dict) else {}


def _plain(tensor: Tensor) -> Tensor:
    """The same tensor without gradient and without attributes, which a pickle can give it to hide its methods."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_nested
    return Tensor.detach(tensor) if plain else tensor


def _without_prefix(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    prefix = ""
    for _ in range(_PREFIX_DEPTH):  # a name may repeat one millions of times
        prefix += next((p for p in PREFIXES if all(name.startswith(prefix + p) for name in tensors)), "")
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


# --- tensors ---------------------------------------------------------------------------------------------------------


def _check_tensors(tensors: Mapping[str, Tensor], limits: IntakeLimits, *, file_bytes: int) -> None:
    """Look at what the tensors claim to be, before touching their memory."""
    if len(tensors) > MAX_TENSORS:
        raise refused(
            "model_tensor_invalid",
            f"There are {len(tensors)} tensors; at most {MAX_TENSORS} are taken. {SEND_WEIGHTS}",
        )
    odd = [name for name in tensors if not TENSOR_NAME.fullmatch(name)]
    if odd:
        raise refused(
            "model_tensor_invalid",
            f"Tensor names are 1 to 256 letters, digits, '_', '.' and '-', which these are not: {listed(odd)}. "
            "Rename them as the architecture does.",
        )
    reasons = {name: reason for name, tensor in tensors.items() if (reason := _reason_against(tensor))}
    if reasons:
        first = next(iter(reasons.values()))
        raise refused(
            "model_tensor_invalid",
            f"{len(reasons)} tensors are not taken: {listed(list(reasons))}. The first {first}. {SEND_WEIGHTS}",
        )
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > limits.tensor_bytes:
        raise refused(
            "input_too_large",
            f"The tensors take {total} bytes; at most {limits.tensor_bytes} are taken. Send a smaller model.",
        )
    if total > limits.tensor_ratio * file_bytes:
        raise refused(
            "input_too_large",
            f"The tensors share so much memory that they take {total} bytes, more than {limits.tensor_ratio} times "
            f"the file. {SEND_WEIGHTS}",
        )


def _reason_against(tensor: Tensor) -> str | None:
    if type(tensor) is not Tensor or tensor.is_nested:
        return f"is a {type(tensor).__name__}, no plain tensor"
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.dtype not in _DTYPES
    ):
        return f"has layout {tensor.layout}, device {tensor.device.type} and dtype {tensor.dtype}"
    if tensor.dim() > _MOST_DIMENSIONS:
        return f"has {tensor.dim()} dimensions"
    if not all(1 <= size <= MAX_DIMENSION for size in tensor.shape):
        return f"has the shape {tuple(tensor.shape)}"
    if _overlaps(tensor) or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"has the shape {tuple(tensor.shape)} but not as many elements of its own"
    return None


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may share memory, as those of an expanded tensor do."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    odd = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if odd:
        raise refused(
            "model_not_finite",
            f"{len(odd)} tensors hold NaN or infinite values: {listed(odd)}. "
            "Send weights from before the training diverged.",
        )


def _is_finite(tensor: Tensor) -> bool:
    """Check in chunks, since ``isfinite`` takes several times the memory of what it looks at."""
    if not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(chunk).all()) for chunk in tensor.detach().reshape(-1).split(_CHUNK_ELEMENTS))  # type: ignore[no-untyped-call]


def _owned(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Give each tensor contiguous memory that no other uses, as safetensors wants it; most have that already."""
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        address = plain.untyped_storage().data_ptr()
        if address in taken or plain.numel() * plain.element_size() != plain.untyped_storage().nbytes():
            plain = plain.clone()
        taken.add(address)
        yield name, plain
