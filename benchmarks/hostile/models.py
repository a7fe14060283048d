"""Kinds of hostile model files: pickles, zips, legacy checkpoints, safetensors, and what is none of these."""

from __future__ import annotations

import _codecs
import functools
import io
import json
import math
import os
import pickle
import pickletools
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.hostile.honest import Honest, zipped
from benchmarks.hostile.kinds import TAKEN, kind
from worker.loading.weights import PREFIXES, WRAPPERS

REFUSALS = (
    "model_container_compressed",
    "model_container_invalid",
    "model_format_unknown",
    "model_header_invalid",
    "model_no_weights",
    "model_not_finite",
    "model_tensor_invalid",
    "model_truncated",
    "model_unreadable",
    "model_unsafe_globals",
    "architecture_mismatch",
    "input_too_large",
)
"""What may be said of a sound model with some of its bytes changed."""

_NOTHING_IS_KNOWN_BEFORE = 21  # bytes of a file that tell what it was to become


# --- how models are written ------------------------------------------------------------------------------------------


def saved(content: object, *, legacy: bool = False) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = bytes(8)) -> bytes:
    """A safetensors file by hand; nothing in it need be true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    """The header's entry of a tensor of bytes."""
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]} | changes


def records(data: bytes) -> dict[str, bytes]:
    """The parts of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A checkpoint, a zip or a legacy one, with another pickle."""
    if data.startswith(b"PK"):
        parts = records(data)
        return zipped({name: change(part) if name.endswith("/data.pkl") else part for name, part in parts.items()})
    stream, ends = io.BytesIO(data), []
    for _ in range(4):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return data[: ends[2]] + change(data[ends[2] : ends[3]]) + data[ends[3] :]


def wrapped(content: object, draw: Random) -> object:
    """Put something under up to two of the usual keys."""
    for key in draw.sample(WRAPPERS, draw.randrange(3)):
        content = {key: content, "epoch": draw.randrange(100)}
    return content


def some_tensor(draw: Random, honest: Honest) -> str:
    """The name of one of the larger tensors of floating-point numbers."""
    return draw.choice([name for name, tensor in honest.state.items() if tensor.dim() and tensor.is_floating_point()])


# --- code in pickles -------------------------------------------------------------------------------------------------


class Gadget:
    """Makes the unpickler call something."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def gadget(draw: Random, honest: Honest) -> Gadget:
    """Code that leaves the flag if it is run."""
    flag = str(honest.flag)
    code = f"__import__('os').mkdir({flag!r})"
    return draw.choice(
        [
            Gadget(os.mkdir, flag),
            Gadget(os.system, f"mkdir '{flag}'"),
            Gadget(subprocess.call, ["mkdir", flag]),
            Gadget(exec, code),
            Gadget(eval, code),
            Gadget(Path.touch, honest.flag),
            Gadget(Path.mkdir, honest.flag),
            Gadget(functools.partial(os.mkdir, flag)),
            Gadget(list, map(os.mkdir, [flag])),
            Gadget(getattr, Gadget(eval, code), "__class__"),
        ]
    )


CALLABLES = (
    *(
        "posix system",
        "nt system",
        "os popen",
        "subprocess Popen",
        "builtins eval",
        "builtins exec",
        "builtins compile",
    ),
    *("builtins __import__", "builtins getattr", "importlib import_module", "runpy run_path", "webbrowser open"),
    *("torch load", "torch.serialization load", "torch.storage _load_from_bytes", "torch.hub load", "torch.jit load"),
    *("pickle loads", "_pickle loads", "marshal loads", "shelve open", "numpy load", "numpy fromfile"),
    *("ctypes CDLL", "timeit timeit", "cProfile run", "bdb Bdb.run", "code InteractiveInterpreter.runcode"),
    *("pip._internal main", "multiprocessing.util spawnv_passfds", "socket create_connection", "shutil rmtree"),
    *("torch._inductor.codecache PyCodeCache.load", "torch.utils.cpp_extension load_inline", "operator attrgetter"),
)


def calling(draw: Random, honest: Honest) -> bytes:
    """A pickle that asks for a call, by one of the ways that pickles have."""
    module, name = draw.choice(CALLABLES).split(" ")
    found = f"c{module}\n{name}\n".encode()
    argument = _text(f"mkdir '{honest.flag}'")
    body = draw.choice(
        [
            found + b"(" + argument + b"tR",
            b"(" + argument + f"i{module}\n{name}\n".encode(),
            b"(" + found + argument + b"o",
            found + argument + b"\x85\x81",
            found + argument + b"\x85}\x92",
            _text(module) + _text(name) + b"\x93" + argument + b"\x85R",
        ]
    )
    return b"\x80" + bytes([draw.choice([2, 2, 3, 4])]) + body + b"."


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


@kind("model", "model_unsafe_globals", files=40)
def code_beside_the_weights_of_a_checkpoint(draw: Random, honest: Honest) -> bytes:
    return saved({"state_dict": wrapped(honest.state, draw), "extra": wrapped(gadget(draw, honest), draw)})


@kind("model", "model_unsafe_globals", files=30)
def code_among_the_weights_of_a_checkpoint(draw: Random, honest: Honest) -> bytes:
    return saved(wrapped({**honest.state, some_tensor(draw, honest): gadget(draw, honest)}, draw))


@kind("model", "model_unsafe_globals", files=30)
def code_in_a_legacy_checkpoint(draw: Random, honest: Honest) -> bytes:
    return saved({"state_dict": honest.state, "extra": wrapped(gadget(draw, honest), draw)}, legacy=True)


@kind("model", "model_unsafe_globals", files=36)
def code_in_a_bare_pickle(draw: Random, honest: Honest) -> bytes:
    return pickle.dumps(wrapped(gadget(draw, honest), draw), protocol=draw.randrange(6))


@kind("model", "model_unsafe_globals", files=60)
def call_by_any_opcode_in_a_checkpoint(draw: Random, honest: Honest) -> bytes:
    return with_pickle(saved(honest.state, legacy=draw.random() < 0.5), lambda _: calling(draw, honest))


@kind("model", "model_unsafe_globals", files=6)
def whole_pickled_model(draw: Random, _: Honest) -> bytes:
    layers = [torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(3), torch.nn.ReLU()]
    model = torch.nn.Sequential(*draw.sample(layers, 2))
    return saved(model, legacy=draw.random() < 0.5)


# --- pickles that ask for much ---------------------------------------------------------------------------------------


@kind("model", "input_too_large", files=6)
def few_bytes_that_ask_for_gigabytes(draw: Random, honest: Honest) -> bytes:
    asks = Gadget(bytearray, draw.randrange(2 * 2**30, 2**36))
    return saved({"state_dict": honest.state, "extra": asks}, legacy=draw.random() < 0.5)


@kind("model", "input_too_large", files=3)
def one_text_encoded_a_thousand_times(draw: Random, honest: Honest) -> bytes:
    text = "x" * draw.randrange(2 * 2**20, 4 * 2**20)
    copies = [Gadget(_codecs.encode, text, "latin1") for _ in range(1000)]
    return saved({"state_dict": honest.state, "extra": copies})


@kind("model", "model_container_invalid", files=4)
def pickle_of_millions_of_lists(draw: Random, honest: Honest) -> bytes:
    many = draw.choice([b"]", b"}", b")", b"K\1"]) * draw.randrange(3_000_000, 12_000_000)
    return with_pickle(saved(honest.state, legacy=draw.random() < 0.5), lambda _: b"\x80\x02(" + many + b"l.")


@kind("model", "model_container_invalid", files=4)
def pickle_of_steps_that_lead_nowhere(draw: Random, honest: Honest) -> bytes:
    idle = b"N" + b"q\0" * draw.randrange(5_000_000, 12_000_000)
    return with_pickle(saved(honest.state, legacy=draw.random() < 0.5), lambda old: old[:2] + idle + b"0" + old[2:])


@kind("model", "model_tensor_invalid", files=3)
def dictionary_that_contains_itself_and_one_tensor_often(draw: Random, honest: Honest) -> bytes:
    tensor = honest.state[some_tensor(draw, honest)]
    content: dict[str, object] = {f"w{number}": tensor for number in range(draw.randrange(100_000, 200_000))}
    content |= dict.fromkeys(WRAPPERS, content)
    return saved(content)


@kind("model", "model_tensor_invalid", files=6)
def prefix_without_end(draw: Random, honest: Honest) -> bytes:
    tensor = honest.state[some_tensor(draw, honest)]
    return saved({draw.choice(PREFIXES) * draw.randrange(100_000, 2_000_000) + "weight": tensor})


@kind("model", "model_tensor_invalid", files=4)
def tensor_of_thousands_of_dimensions(draw: Random, honest: Honest) -> bytes:
    tensor = torch.ones([1] * draw.randrange(1000, 50_000))
    return saved(honest.state | {"extra.weight": tensor if draw.random() < 0.5 else tensor[None][:0]})


@kind("model", "input_too_large", files=4)
def thousands_of_tensors_that_share_memory(draw: Random, honest: Honest) -> bytes:
    one = torch.ones(draw.randrange(100_000, 400_000))
    return saved(honest.state | {f"w{number}": one for number in range(draw.randrange(2000, 19_000))})


@kind("model", "model_tensor_invalid", files=2)
def more_tensors_than_any_model_has(draw: Random, honest: Honest) -> bytes:
    one = torch.ones(1)
    return saved(honest.state | {f"w{number}": one for number in range(draw.randrange(20_001, 40_000))})


# --- zips that are no checkpoint -------------------------------------------------------------------------------------


@kind("model", "model_container_compressed", files=12)
def compressed_checkpoint(draw: Random, honest: Honest) -> bytes:
    zeros = torch.zeros(draw.randrange(2**20, 2**23))
    method = draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    return zipped(records(saved(honest.state | {"zeros": zeros})), method)


@kind("model", "model_container_compressed", files=8)
def checkpoint_that_says_it_is_encrypted(draw: Random, honest: Honest) -> bytes:
    data = bytearray(saved(honest.state))
    place = draw.choice(_places(data, b"PK\1\2")) + 8
    data[place] |= 1
    return bytes(data)


@kind("model", "model_container_invalid", files=16)
def checkpoint_with_parts_that_lead_out_of_it(draw: Random, honest: Honest) -> bytes:
    parts = records(saved(honest.state))
    name = draw.choice(["../{}", "archive/../../{}", "/{}", "other/{}", "archive/..\\{}", "C:\\{}"])
    return zipped(parts | {name.format(draw.randbytes(4).hex()): draw.randbytes(100)})


@kind("model", "model_container_invalid", files=8)
def checkpoint_behind_other_bytes(draw: Random, honest: Honest) -> bytes:
    return b"PK\3\4" + draw.randbytes(draw.randrange(30, 5000)) + saved(honest.state)


@kind("model", "model_container_invalid", files=8)
def checkpoint_with_a_comment_where_another_directory_may_hide(draw: Random, honest: Honest) -> bytes:
    data = saved(honest.state)
    hidden = saved({"hidden": torch.ones(1)})[: draw.randrange(10, 400)]
    end = data.rindex(b"PK\5\6")
    return data[: end + 20] + struct.pack("<H", len(hidden)) + hidden


@kind("model", "model_container_invalid", files=8)
def two_parts_of_one_name(draw: Random, honest: Honest) -> bytes:
    buffer = io.BytesIO(saved(honest.state))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "a") as archive:
        name = draw.choice(archive.namelist())
        archive.writestr(name, draw.randbytes(50))
    return buffer.getvalue()


@kind(
    *("model", "model_container_invalid", "model_container_compressed", "model_truncated", "model_unreadable"),
    *("model_format_unknown",),
    files=40,
)
def zip_directory_that_lies(draw: Random, honest: Honest) -> bytes:
    data = bytearray(saved(honest.state))
    field = draw.choice([20, 24, 42])  # packed size, size, offset
    place = draw.choice(_places(data, b"PK\1\2")) + field
    data[place : place + 4] = struct.pack("<I", draw.choice([len(data), 2**31, 2**32 - 1, draw.randrange(1, 2**20)]))
    return bytes(data)


@kind("model", "model_container_invalid", "model_truncated", "model_format_unknown", TAKEN, files=24)
def zip_end_that_lies(draw: Random, honest: Honest) -> bytes:
    data = bytearray(saved(honest.state))
    place, size = draw.choice([(8, 2), (10, 2), (12, 4), (16, 4)])  # entries twice, size and place of the directory
    lie = draw.choice([0, 1, 2 ** (8 * size) - 1, draw.randrange(2 ** (8 * size))])
    end = data.rindex(b"PK\5\6") + place
    data[end : end + size] = lie.to_bytes(size, "little")
    data[data.rindex(b"PK\6\7") : data.rindex(b"PK\6\7") + 4] = draw.choice([b"PK\6\7", b"xxxx"])
    return bytes(data)


@kind("model", "model_container_invalid", files=8)
def zip_end_that_leads_to_a_hidden_checkpoint(draw: Random, honest: Honest) -> bytes:
    shown, hidden = _zip64(saved(honest.state)), _zip64(saved(gadget(draw, honest)))
    directory = bytearray(hidden.directory)
    for place in _places(directory, b"PK\1\2"):
        (offset,) = struct.unpack_from("<I", directory, place + 42)
        struct.pack_into("<I", directory, place + 42, offset + len(shown.body))
    begin = shown.body + hidden.body + directory + hidden.end_at(len(shown.body) + len(hidden.body))
    locator = shown.locator[:8] + struct.pack("<Q", len(begin) - len(hidden.end)) + shown.locator[16:]
    return begin + shown.directory + shown.end_at(len(begin)) + locator + shown.last[:16] + b"\xff" * 4 + b"\0\0"


class _Zip64(NamedTuple):
    """A zip in its parts: files, directory, and the three records that lead to it."""

    body: bytes
    directory: bytes
    end: bytes
    locator: bytes
    last: bytes

    def end_at(self, directory: int) -> bytes:
        """The end record, of a directory that lies elsewhere."""
        return self.end[:48] + struct.pack("<Q", directory)


def _zip64(data: bytes) -> _Zip64:
    end = data.rindex(b"PK\6\6")
    (start,) = struct.unpack_from("<Q", data, end + 48)
    return _Zip64(data[:start], data[start:end], data[end : end + 56], data[end + 56 : -22], data[-22:])


def _places(data: bytes | bytearray, mark: bytes) -> list[int]:
    places = []
    place = data.find(mark)
    while place >= 0:
        places.append(place)
        place = data.find(mark, place + 1)
    return places


@kind("model", "model_unreadable", files=16)
def storage_that_claims_more_than_is_there(draw: Random, _: Honest) -> bytes:
    claimed = b"J" + struct.pack("<i", draw.randrange(2**10, 2**31))
    data = saved({"a": torch.ones(4)})
    return with_pickle(data, lambda old: old.replace(b"K\4t", claimed + b"t").replace(b"K\4\x85", claimed + b"\x85"))


@kind("model", "model_unreadable", "input_too_large", files=24)
def tensor_that_claims_more_than_its_storage(draw: Random, _: Honest) -> bytes:
    claimed = b"J" + struct.pack("<i", draw.randrange(2**9, 2 ** draw.randrange(10, 32))) + b"\x85"
    data = saved({"a": torch.ones(4)}, legacy=draw.random() < 0.3)
    return with_pickle(data, lambda old: old.replace(b"K\4\x85", claimed))


# --- tensors that are none -------------------------------------------------------------------------------------------


@kind("model", "model_tensor_invalid", files=20)
def elements_that_share_memory(draw: Random, honest: Honest) -> bytes:
    side = draw.randrange(2, 2**20)
    odd = draw.choice([torch.ones(1).expand(side, side), torch.ones(side).as_strided((side // 2 + 1, 2), (1, 1))])
    return saved(honest.state | {some_tensor(draw, honest): odd}, legacy=draw.random() < 0.3)


@kind("model", "model_tensor_invalid", files=21)
def tensors_of_another_sort(draw: Random, honest: Honest) -> bytes:
    side = draw.randrange(2, 1000)
    with warnings.catch_warnings(action="ignore"):
        odd: list[Tensor] = [
            torch.ones(2**40, device="meta"),
            torch.eye(side).to_sparse(),
            torch.eye(side).to_sparse_csr(),
            torch.quantize_per_tensor(torch.ones(side), 0.1, 0, torch.qint8),
            torch.ones(side, dtype=torch.complex64),
            torch.ones(side, 0),
            torch.ones(side, dtype=torch.float8_e4m3fn),
            torch.nested.nested_tensor([torch.ones(side), torch.ones(2)]),
        ]
    return saved(honest.state | {some_tensor(draw, honest): draw.choice(odd)})


@kind("model", "model_not_finite", files=30)
def nan_or_infinity_somewhere(draw: Random, honest: Honest) -> bytes:
    name = some_tensor(draw, honest)
    odd = honest.state[name].clone().to(draw.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    odd.view(-1)[draw.randrange(odd.numel())] = draw.choice([math.nan, math.inf, -math.inf])
    tensors = honest.state | {name: odd}
    return save(tensors) if draw.random() < 0.4 else saved(wrapped(tensors, draw), legacy=draw.random() < 0.3)


@kind("model", "model_tensor_invalid", files=20)
def names_that_are_no_names_of_tensors(draw: Random, honest: Honest) -> bytes:
    name = draw.choice(
        [
            "",
            "a b",
            "a\0b",
            "a\x1b[31m",
            "<script>alert(1)</script>",
            "=cmd|' /C calc'!A0",
            "ä",
            "\u202egnp",
            "../../x",
            "\ud800",
        ]
    )
    return saved(honest.state | {name: torch.ones(draw.randrange(1, 9))}, legacy=draw.random() < 0.3)


@kind("model", "model_no_weights", files=12)
def checkpoint_without_weights(draw: Random, honest: Honest) -> bytes:
    tensors = honest.state
    empty: list[object] = [
        3,
        [*tensors.values()],
        {"state_dict": {"a": 1}},
        {"my_weights": tensors},
        {0: torch.ones(1)},
    ]
    return saved(draw.choice([*empty, torch.ones(4), "text", None, {}]), legacy=draw.random() < 0.3)


# --- cut off, changed ------------------------------------------------------------------------------------------------


def _cut(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(_NOTHING_IS_KNOWN_BEFORE, len(data))]


def _changed(data: bytes, draw: Random) -> bytes:
    """Change, double or drop a few bytes, mostly near the start, where the structure is."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        place = draw.randrange(min(len(changed), draw.choice([64, 2000, len(changed)])))
        end = place + draw.choice([0, 1, 1, 1, 1, 8])
        changed[place:end] = draw.randbytes(draw.choice([0, 1, 1, 1, 1, 8]))
    return bytes(changed)


@kind("model", "model_truncated", files=64)
def checkpoint_cut_off(draw: Random, honest: Honest) -> bytes:
    return _cut(saved(honest.state), draw)


@kind("model", "model_truncated", files=64)
def legacy_checkpoint_cut_off(draw: Random, honest: Honest) -> bytes:
    return _cut(saved(honest.state, legacy=True), draw)


@kind("model", "model_truncated", files=64)
def safetensors_cut_off(draw: Random, honest: Honest) -> bytes:
    return _cut(save(honest.state), draw)


@kind("model", *REFUSALS, TAKEN, files=40)
def checkpoint_with_bytes_changed(draw: Random, honest: Honest) -> bytes:
    return _changed(saved(honest.state), draw)


@kind("model", *REFUSALS, TAKEN, files=40)
def legacy_checkpoint_with_bytes_changed(draw: Random, honest: Honest) -> bytes:
    return _changed(saved(honest.state, legacy=True), draw)


@kind("model", *REFUSALS, TAKEN, files=40)
def pickle_of_a_checkpoint_with_bytes_changed(draw: Random, honest: Honest) -> bytes:
    return with_pickle(saved(honest.state, legacy=draw.random() < 0.5), lambda old: _changed(old, draw))


@kind("model", *REFUSALS, TAKEN, files=40)
def safetensors_with_bytes_changed(draw: Random, honest: Honest) -> bytes:
    return _changed(save(honest.state), draw)


# --- safetensors -----------------------------------------------------------------------------------------------------


@kind("model", "model_header_invalid", "model_truncated", files=16)
def safetensors_header_of_any_length(draw: Random, honest: Honest) -> bytes:
    data = save(honest.state)
    length = draw.choice([2**64 - 1, 2**63, 2**40, 4 * 2**20 + 1, len(data), len(data) - 8, draw.randrange(3, 500)])
    return struct.pack("<Q", length) + data[8:]


@kind("model", "model_header_invalid", files=8)
def safetensors_with_one_name_for_two_tensors(draw: Random, honest: Honest) -> bytes:
    sound = json.dumps(entry(0, 8))
    name = draw.choice(list(honest.state))
    field = '{"dtype": "U8", "dtype": "I8", "shape": [8], "data_offsets": [0, 8]}'
    return safetensors(draw.choice([f'{{"{name}": {sound}, "{name}": {sound}}}', f'{{"{name}": {field}}}']).encode())


@kind("model", "model_header_invalid", files=24)
def safetensors_of_impossible_shapes(draw: Random, _: Honest) -> bytes:
    large = draw.randrange(2**31 + 1, 2**64)
    shapes: list[Any] = [[0, large], [large], [-8], [8.0], [True, 8], [7], "8", None, [[8]], [2] * 70, [1] * 100_000]
    return safetensors({"a": entry(0, 8, shape=draw.choice(shapes))})


@kind("model", "model_header_invalid", files=24)
def safetensors_whose_tensors_overlap_or_leave_gaps(draw: Random, _: Honest) -> bytes:
    first = draw.randrange(1, 7)
    second = draw.choice([place for place in range(9) if place != first])
    far = draw.choice([first, 2**40, -1, 2**63])
    places = draw.choice([{"a": entry(0, first), "b": entry(second, max(8, second))}, {"a": entry(first, 8)}])
    return safetensors(draw.choice([places, {"a": entry(0, 8), "b": entry(8, 9, data_offsets=[far, far + 1])}]))


@kind("model", "model_header_invalid", files=10)
def safetensors_of_unknown_dtypes_or_fields(draw: Random, _: Honest) -> bytes:
    changes: list[dict[str, Any]] = [{"dtype": name} for name in ("F8_E4M3", "C64", "u8", "", "F32\0", "OBJECT")]
    changes += [{"code": "x"}, {"dtype": 3}, {"data_offsets": [0]}, {"data_offsets": "08"}]
    return safetensors({"a": entry(0, 8) | draw.choice(changes)})


@kind("model", "model_header_invalid", files=16)
def safetensors_names_that_are_none(draw: Random, _: Honest) -> bytes:
    names = [
        "a\0",
        "<img src=x onerror=alert(1)>",
        "",
        "x" * 257,
        "../a",
        "\u202ea",
        "\ud800",
        "a\r\nSet-Cookie: b",
        "'; --",
    ]
    return safetensors({draw.choice(names): entry(0, 8)})


@kind("model", "model_header_invalid", files=10)
def safetensors_metadata_that_are_none(draw: Random, _: Honest) -> bytes:
    odd: list[Any] = [{"a": "x" * 65536}, {"a": 1}, [], "x", None, {"a": {"b": "c"}}, [{}] * 1_000_000]
    return safetensors({"__metadata__": draw.choice(odd), "a": entry(0, 8)})


@kind("model", "model_header_invalid", files=16)
def safetensors_header_that_is_no_json(draw: Random, _: Honest) -> bytes:
    depth = draw.randrange(1000, 1_000_000)
    sound = json.dumps(entry(0, 8))
    texts = [b'{"a": \xff}', b'{"a": NaN}', b'{"a": [' + b"9" * depth + b"]}", f'{{"a": {sound}}} x'.encode()]
    texts += [b'{"a": ' + b"[" * depth + b"]" * depth + b"}", b'{"a":' * depth + b"1" + b"}" * depth, b"{"]
    return safetensors(draw.choice(texts))


@kind("model", "model_header_invalid", files=2)
def safetensors_of_too_many_tensors(draw: Random, _: Honest) -> bytes:
    return safetensors({f"t{number}": entry(0, 0) for number in range(draw.randrange(20_002, 60_000))})


@kind("model", "architecture_mismatch", files=2)
def safetensors_of_as_many_tensors_as_are_read(draw: Random, _: Honest) -> bytes:
    names = [f"{draw.getrandbits(32):08x}.{number}" for number in range(20_000)]
    return safetensors({name: entry(place, place + 1) for place, name in enumerate(names)}, bytes(len(names)))


@kind("model", "model_header_invalid", files=8)
def safetensors_followed_by_another_file(draw: Random, honest: Honest) -> bytes:
    tails = [
        saved({"a": torch.ones(1)}),
        pickle.dumps(gadget(draw, honest)),
        draw.randbytes(1),
        b"<script>alert(1)</script>",
    ]
    return save(honest.state) + draw.choice(tails)


@kind("model", TAKEN, files=6)
def sound_safetensors_with_markup_in_metadata(draw: Random, honest: Honest) -> bytes:
    text = draw.choice(["<script>alert(1)</script>", "\x1b[2J", "\u202e", "=HYPERLINK()", "../../x", "\U0001f600"])
    return save(honest.state, metadata={text: text * draw.randrange(1, 500)})


# --- other formats ---------------------------------------------------------------------------------------------------


@kind("model", "model_format_hdf5", files=6)
def hdf5_or_keras(draw: Random, _: Honest) -> bytes:
    keras = zipped({"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": draw.randbytes(99)})
    return draw.choice([b"\x89HDF\r\n\x1a\n" + draw.randbytes(draw.randrange(5000)), keras])


@kind("model", "model_format_gguf", files=4)
def gguf(draw: Random, _: Honest) -> bytes:
    return b"GGUF\3\0\0\0" + draw.randbytes(draw.randrange(5000))


@kind("model", "model_format_onnx", files=4)
def onnx(draw: Random, _: Honest) -> bytes:
    return bytes([8, draw.randrange(3, 12)]) + b"\x12\x07pytorch\x1a\x032.0" + draw.randbytes(draw.randrange(5000))


@kind("model", "model_format_saved_model", files=4)
def saved_model(draw: Random, _: Honest) -> bytes:
    packed = zipped({"m/saved_model.pb": draw.randbytes(99), "m/variables/variables.index": b""})
    return draw.choice([b"\x08\x01\x12\x90\x01" + draw.randbytes(150), packed])


@kind("model", "model_format_torchscript", files=6)
def torchscript(_: Random, honest: Honest) -> bytes:
    code = f"import os\nos.mkdir({str(honest.flag)!r})\n".encode()
    parts = records(saved(honest.state))
    return zipped(parts | {"archive/code/__torch__.py": code, "archive/constants.pkl": b"\x80\x02)."})


@kind("model", "model_format_pt2", files=6)
def exported_program(draw: Random, honest: Honest) -> bytes:
    weights = pickle.dumps(gadget(draw, honest), protocol=2)
    newer = {"m/archive_format": b"pt2", "m/models/model.json": b"{}", "m/data/weights/weight_0": weights}
    older = {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": weights}
    return zipped(draw.choice([newer, older]))


@kind("model", "model_format_unknown", files=30)
def what_is_no_model_at_all(draw: Random, honest: Honest) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../model.pth"))
    others = [
        b"\x1f\x8b\x08" + draw.randbytes(500),
        tar.getvalue(),
        b"\x93NUMPY\x01\x00" + draw.randbytes(500),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        pickle.dumps({"a": draw.random()}),
        b"<!DOCTYPE html><html><body><script>alert(1)</script></body></html>",
        b"#!/bin/sh\nmkdir " + str(honest.flag).encode(),
        b"\x7fELF\x02\x01\x01" + draw.randbytes(500),
        b"MZ" + draw.randbytes(500),
        b"%PDF-1.7\n" + draw.randbytes(500),
        next(iter(honest.images.values())) + saved(honest.state),
        zipped(honest.images),
        zipped({}),
        json.dumps({"weights": [draw.random()]}).encode(),
        b"\xff" * draw.randrange(1, 5000),
    ]
    return draw.choice(others)


@kind("model", "model_empty", files=1)
def nothing(_: Random, __: Honest) -> bytes:
    return b""
