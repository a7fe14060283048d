from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.hostile.honest import Honest
from benchmarks.hostile.models import with_pickle, zip_end_that_leads_to_a_hidden_checkpoint
from worker.loading.refusal import RefusedError, told
from worker.loading.weights import PREFIXES, WRAPPERS, load_weights, write_twin
from worker.task import Container, IntakeLimits

LIMITS = IntakeLimits()
TENSORS = {
    "conv.weight": torch.arange(24.0).view(2, 3, 2, 2),
    "bn.running_mean": torch.tensor([1.0, 2.0], dtype=torch.float16),
    "bn.num_batches_tracked": torch.tensor(7),
    "fc.weight": torch.ones(3, 2, dtype=torch.bfloat16),
    "fc.bias": torch.zeros(3, dtype=torch.float64),
}
ALL_PREFIXES = ("", *PREFIXES, "_orig_mod.module.", "module._orig_mod.")
ALL_WRAPPERS = ((), *((key,) for key in WRAPPERS), ("model", "state_dict"), ("ema", "net", "state_dict"))


def wrapped(content: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    return content


def assert_same(given: Any, expected: Any) -> None:
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor)


def code_of(path: Path, limits: IntakeLimits = LIMITS) -> str:
    with pytest.raises(RefusedError) as refusal:
        load_weights(path, limits)
    (problem,) = refusal.value.problems
    assert len(problem.detail) > 20
    return problem.code


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def saved(obj: object, *, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def repacked(data: bytes, change: Callable[[str, bytes], bytes] = lambda _, content: content, **options: Any) -> bytes:
    """The zip again, by Python's own writer, with some contents changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ALL_WRAPPERS)
@pytest.mark.parametrize("prefix", ALL_PREFIXES)
def test_a_checkpoint_comes_back_whatever_wraps_it_and_its_twin_is_wrapped_the_same(
    tmp_path: Path, keys: tuple[str, ...], prefix: str
) -> None:
    named = {prefix + name: tensor for name, tensor in TENSORS.items()}
    weights = load_weights(write(tmp_path / "model", saved(wrapped(named, keys))), LIMITS)
    assert weights.container == Container(format="torch", wrapper=keys, prefix=prefix)
    assert_same(weights.tensors, TENSORS)

    write_twin(tmp_path / "twin", {name: tensor + 1 for name, tensor in TENSORS.items()}, weights.container)
    twin = torch.load(tmp_path / "twin", weights_only=True)
    for key in keys:
        assert list(twin) == [key]
        twin = twin[key]
    assert_same(twin, {name: tensor + 1 for name, tensor in named.items()})
    assert load_weights(tmp_path / "twin", LIMITS).container == weights.container


@pytest.mark.parametrize("prefix", ALL_PREFIXES)
def test_safetensors_come_back_and_so_does_their_twin(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + name: tensor for name, tensor in TENSORS.items()}, tmp_path / "model.pth")
    weights = load_weights(tmp_path / "model.pth", LIMITS)
    assert weights.container == Container(format="safetensors", prefix=prefix)
    assert dict(weights.tensors).keys() == TENSORS.keys()
    write_twin(tmp_path / "twin", weights.tensors, weights.container)
    twin = load_weights(tmp_path / "twin", LIMITS)
    assert twin.container == weights.container
    assert all(torch.equal(twin.tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("suffix", [".pth", ".tar", ".bin", ".safetensors", ".onnx"])
@pytest.mark.parametrize("new", [True, False])
def test_content_decides_not_the_suffix(tmp_path: Path, suffix: str, new: bool) -> None:
    path = write(tmp_path / f"model{suffix}", saved({"state_dict": TENSORS}, new=new))
    assert_same(load_weights(path, LIMITS).tensors, TENSORS)


def test_what_else_a_checkpoint_holds_is_left_aside(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "best": torch.tensor(0.9), "optimizer": optimizer.state_dict(), "net": model.state_dict()}
    weights = load_weights(write(tmp_path / "model", saved(content)), LIMITS)
    assert_same(weights.tensors, model.state_dict())
    assert weights.container.wrapper == ("net",)
    assert weights.warnings == ()


def test_of_several_sets_of_weights_the_first_is_taken_with_a_warning(tmp_path: Path) -> None:
    content = {"ema": {"a": torch.ones(1)}, "model": {"a": torch.zeros(1)}}
    weights = load_weights(write(tmp_path / "model", saved(content)), LIMITS)
    assert weights.container.wrapper == ("model",)
    (warning,) = weights.warnings
    assert "ema" in warning


def test_parameters_views_and_tied_weights_become_plain_tensors_with_memory_of_their_own(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    content = {
        "tied": base,
        "again": base,
        "part": base[2:4],
        "turned": base.view(2, 3).t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    weights = load_weights(write(tmp_path / "model", saved(content)), LIMITS)
    for name, tensor in weights.tensors.items():
        assert type(tensor) is Tensor
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert torch.equal(tensor, content[name])
    assert len({tensor.data_ptr() for tensor in weights.tensors.values()}) == len(content)


@pytest.mark.parametrize("name", ["badnet-wrn16-1.pth.tar", "cleanlabel-wrn16-1.pth.tar"])
def test_the_authors_checkpoints_load(name: str) -> None:
    path = Path(os.environ.get("MEDIC_TEST_DATA", "../shared/data")) / "checkpoints" / name
    if not path.exists():
        pytest.skip(f"{path} is not there; MEDIC_TEST_DATA names the folder")
    weights = load_weights(path, LIMITS)
    assert weights.container == Container(format="torch", wrapper=("state_dict",))
    assert len(weights.tensors) == 82


# --- pickles that ask for more ---------------------------------------------------------------------------------------


class Canary:
    """What a gadget would do: here it would leave a file behind."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.flag),)


CARRIERS: dict[str, Callable[[object], bytes]] = {
    "zip": lambda canary: saved({"state_dict": TENSORS, "extra": canary}),
    "legacy": lambda canary: saved({"state_dict": TENSORS, "extra": canary}, new=False),
    **{f"protocol {n}": lambda canary, n=n: pickle.dumps(canary, protocol=n) for n in range(6)},
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_code_in_a_pickle_is_named_and_never_runs(tmp_path: Path, carrier: str) -> None:
    flag = tmp_path / "flag"
    data = CARRIERS[carrier](Canary(flag))
    with pytest.raises(RefusedError) as refusal:
        load_weights(write(tmp_path / "model.pth", data), LIMITS)
    assert not flag.exists()
    (problem,) = refusal.value.problems
    assert problem.code == "model_unsafe_globals"
    assert "posix.mkdir" in problem.detail

    if carrier.startswith("protocol"):  # the canary itself works, else this test shows nothing
        pickle.loads(data)  # noqa: S301 - our own
        assert flag.exists()


@pytest.mark.parametrize("new", [True, False])
def test_a_function_beside_those_that_tensors_need_is_named(tmp_path: Path, new: bool) -> None:
    load = Call(torch.storage._load_from_bytes, b"")
    with pytest.raises(RefusedError) as refusal:
        load_weights(write(tmp_path / "model", saved({"state_dict": TENSORS, "extra": load}, new=new)), LIMITS)
    assert refusal.value.problems[0].code == "model_unsafe_globals"
    assert "torch.storage._load_from_bytes" in refusal.value.problems[0].detail


@pytest.mark.parametrize("new", [True, False])
def test_a_whole_pickled_model_is_refused_by_the_classes_it_needs(tmp_path: Path, new: bool) -> None:
    with warnings.catch_warnings(action="ignore"):
        data = saved(torch.nn.Sequential(torch.nn.Linear(1, 1)), new=new)
    with pytest.raises(RefusedError) as refusal:
        load_weights(write(tmp_path / "model.pth", data), LIMITS)
    assert refusal.value.problems[0].code == "model_unsafe_globals"
    assert "torch.nn.modules.linear.Linear" in refusal.value.problems[0].detail
    assert "model.state_dict()" in refusal.value.problems[0].detail


def test_attributes_given_to_a_dictionary_or_tensor_hide_nothing(tmp_path: Path) -> None:
    class Hiding(OrderedDict):  # type: ignore[type-arg]
        def __reduce__(self) -> tuple[Any, ...]:
            shadow = dict.fromkeys(("items", "keys", "get", "values"), OrderedDict)
            return OrderedDict, (), shadow, None, iter(self.items())

    tensor = torch.nn.Parameter(torch.tensor([float("nan")]))
    tensor.is_floating_point = set  # type: ignore[method-assign,assignment]
    content = Hiding(a=tensor)
    assert code_of(write(tmp_path / "model", saved(content))) == "model_not_finite"


class Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_gets_no_more_memory_than_its_file_accounts_for(tmp_path: Path, new: bool) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    has = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # some of it may be free
    path = write(tmp_path / "model", saved({"state_dict": TENSORS, "extra": Call(bytearray, has + 2**30)}, new=new))
    with pytest.raises(MemoryError):
        load_weights(path, LIMITS)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("step", [b"]", b"q\0"], ids=["that take memory", "that take time alone"])
def test_a_pickle_of_millions_of_steps_is_refused(tmp_path: Path, new: bool, step: bytes) -> None:
    data = with_pickle(saved(TENSORS, new=new), lambda old: old[:2] + b"N" + step * 2_000_001 + b"." + old[2:])
    assert code_of(write(tmp_path / "model", data)) == "model_container_invalid"


def test_a_dictionary_is_looked_at_once_however_many_keys_lead_to_it(tmp_path: Path) -> None:
    content: dict[str, Any] = dict(TENSORS)
    content |= dict.fromkeys(WRAPPERS, content)
    weights = load_weights(write(tmp_path / "model", saved(content)), LIMITS)
    assert_same(weights.tensors, TENSORS)
    assert weights.container.wrapper == ()
    alias = load_weights(write(tmp_path / "model", saved({"model": TENSORS, "state_dict": TENSORS})), LIMITS)
    assert alias.warnings == ()


def test_a_prefix_is_not_taken_away_for_ever(tmp_path: Path) -> None:
    path = write(tmp_path / "model", saved({"module." * 100_000 + "weight": torch.ones(1)}))
    began = time.process_time()
    assert code_of(path) == "model_tensor_invalid"
    assert time.process_time() - began < 2


def test_what_a_library_says_of_a_file_is_shown_on_one_short_line_of_plain_characters() -> None:
    shown = told(ValueError("no\n  \x1b[2J\u202e<b>" + "x" * 1000))
    assert shown.startswith("no \\x1b[2J\\u202e<b>xx")
    assert shown.isprintable()
    assert len(shown) < 300


# --- what is refused -------------------------------------------------------------------------------------------------


def zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 50)
    return buffer.getvalue()


FORMATS = {
    "empty": (b"", "model_empty"),
    "text": ("Where are my weights? Über.\n".encode() * 40, "model_format_unknown"),
    "text like a pickle": (b"cat\ndog\nfrog\n", "model_format_unknown"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "model_format_unknown"),
    "json": (b'{"a": {"b": 1}, "c": [1, 2]}', "model_format_unknown"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "model_format_unknown"),
    "noise": (np.random.default_rng(0).bytes(5000), "model_format_unknown"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "model_format_unknown"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(50), "model_format_unknown"),
    "plain pickle": (pickle.dumps({"a": 1}), "model_format_unknown"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "model_format_hdf5"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(50), "model_format_gguf"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x032.0" + bytes(50), "model_format_onnx"),
    "saved model": (b"\x08\x01\x12\x90\x01" + bytes(150), "model_format_saved_model"),
    "zipped saved model": (zip_of("m/saved_model.pb", "m/variables/variables.index"), "model_format_saved_model"),
    "keras": (zip_of("config.json", "metadata.json", "model.weights.h5"), "model_format_hdf5"),
    "torchscript": (zip_of("m/data.pkl", "m/constants.pkl", "m/code/m.py", "m/version"), "model_format_torchscript"),
    "pt2": (zip_of("m/archive_format", "m/models/model.json", "m/data/weights/weight_0"), "model_format_pt2"),
    "older pt2": (zip_of("serialized_exported_program.json", "serialized_state_dict.pt"), "model_format_pt2"),
    "zip of images": (zip_of("cat/1.png", "dog/1.png"), "model_format_unknown"),
    "empty zip": (zip_of(), "model_format_unknown"),
    "a number": (saved(3), "model_no_weights"),
    "a list": (saved([torch.ones(1)]), "model_no_weights"),
    "no tensors": (saved({"state_dict": {"a": 1}}), "model_no_weights"),
    "an unknown wrapper": (saved({"my_weights": TENSORS}), "model_no_weights"),
    "numbers as names": (saved({0: torch.ones(1)}), "model_no_weights"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("case", FORMATS)
def test_other_formats_are_refused_by_their_content(tmp_path: Path, case: str, suffix: str) -> None:
    data, code = FORMATS[case]
    assert code_of(write(tmp_path / f"model.{suffix}", data)) == code


def expanded() -> Tensor:
    return torch.ones(1).expand(2**20, 2**20)


def quantized() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


ODD_TENSORS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "stride 0": (expanded, "model_tensor_invalid"),
    "overlapping": (lambda: torch.ones(100).as_strided((10, 10), (1, 1)), "model_tensor_invalid"),
    "meta": (lambda: torch.ones(2**40, device="meta"), "model_tensor_invalid"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "model_tensor_invalid"),
    "quantized": (quantized, "model_tensor_invalid"),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "model_tensor_invalid"),
    "no elements": (lambda: torch.ones(2, 0), "model_tensor_invalid"),
    "nan": (lambda: torch.tensor([1.0, float("nan")]), "model_not_finite"),
    "infinite": (lambda: torch.tensor([1.0, float("-inf")], dtype=torch.bfloat16), "model_not_finite"),
    "nan far behind": (lambda: torch.cat([torch.zeros(2**22), torch.tensor([float("nan")])]), "model_not_finite"),
}


@pytest.mark.parametrize("case", ODD_TENSORS)
def test_a_tensor_that_is_not_plain_and_finite_is_named(tmp_path: Path, case: str) -> None:
    make, code = ODD_TENSORS[case]
    with warnings.catch_warnings(action="ignore"):
        path = write(tmp_path / "model", saved({"sound": torch.ones(1), "odd.one": make()}))
    with pytest.raises(RefusedError) as refusal:
        load_weights(path, LIMITS)
    (problem,) = refusal.value.problems
    assert problem.code == code
    assert "'odd.one'" in problem.detail
    assert "sound" not in problem.detail


def test_not_finite_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([float("inf")])}, tmp_path / "model")
    assert code_of(tmp_path / "model") == "model_not_finite"


@pytest.mark.parametrize("name", ["", "a b", "a\0b", "<b>", "ä", "x" * 257])
def test_odd_tensor_names_are_refused(tmp_path: Path, name: str) -> None:
    assert code_of(write(tmp_path / "model", saved({name: torch.ones(1)}))) == "model_tensor_invalid"


def test_tensors_that_share_memory_cannot_add_up_to_more_than_the_limit(tmp_path: Path) -> None:
    one = torch.ones(1000)
    path = write(tmp_path / "model", saved({f"w{i}": one for i in range(100)}))
    assert path.stat().st_size < 100_000
    assert code_of(path, IntakeLimits(tensor_bytes=100_000)) == "input_too_large"


def test_few_bytes_cannot_stand_for_many_tensors(tmp_path: Path) -> None:
    one = torch.ones(100_000)
    assert code_of(write(tmp_path / "model", saved({f"w{i}": one for i in range(100)}))) == "input_too_large"
    tied = load_weights(write(tmp_path / "model", saved({"encoder": one, "decoder": one.view(100, 1000)})), LIMITS)
    assert tied.tensors["encoder"].data_ptr() != tied.tensors["decoder"].data_ptr()


@pytest.mark.parametrize("shape", [[1] * 1000, [1] * 1000 + [0]])
def test_a_tensor_of_a_thousand_dimensions_is_refused_in_few_words(tmp_path: Path, shape: list[int]) -> None:
    with pytest.raises(RefusedError) as refusal:
        load_weights(write(tmp_path / "model", saved({"a": torch.ones(shape)})), LIMITS)
    (problem,) = refusal.value.problems
    assert problem.code == "model_tensor_invalid"
    assert len(problem.detail) < 500


# --- containers that lie ---------------------------------------------------------------------------------------------


def test_a_sound_repacked_checkpoint_loads(tmp_path: Path) -> None:
    assert_same(load_weights(write(tmp_path / "model", repacked(saved(TENSORS))), LIMITS).tensors, TENSORS)


def test_compressed_entries_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    data = repacked(saved({"a": torch.zeros(2**22)}), compression=zipfile.ZIP_DEFLATED)
    assert len(data) < 100_000
    assert code_of(write(tmp_path / "model", data)) == "model_container_compressed"


def test_a_zip_that_two_parsers_may_read_differently_is_refused(tmp_path: Path) -> None:
    data = saved(TENSORS)
    assert code_of(write(tmp_path / "model", b"PK\3\4" + bytes(100) + data)) == "model_container_invalid"
    with zipfile.ZipFile(write(tmp_path / "commented", data), "a") as archive:
        archive.comment = b"another end record may hide here"
    assert code_of(tmp_path / "commented") == "model_container_invalid"


def test_an_entry_that_lies_outside_the_file_is_refused(tmp_path: Path) -> None:
    data = bytearray(saved(TENSORS))
    last = data.rindex(b"PK\1\2") + 42
    data[last : last + 4] = struct.pack("<I", len(data))
    assert code_of(write(tmp_path / "model", bytes(data))) == "model_container_invalid"


def test_a_storage_that_claims_more_than_its_record_holds_is_refused(tmp_path: Path) -> None:
    def claim_more(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        changed = content.replace(b"K\x04t", b"J\x00\x00\x10\x00t").replace(b"K\x04\x85", b"J\x00\x00\x10\x00\x85")
        assert changed != content
        return changed

    data = repacked(saved({"a": torch.ones(4)}), claim_more)
    assert code_of(write(tmp_path / "model", data)) == "model_unreadable"


@pytest.mark.parametrize("new", [True, False])
def test_a_tensor_that_claims_more_than_its_storage_is_refused(tmp_path: Path, new: bool) -> None:
    claim = b"M" + struct.pack("<H", 4000) + b"\x85"
    data = with_pickle(saved({"a": torch.ones(4)}, new=new), lambda old: old.replace(b"K\4\x85", claim))
    assert code_of(write(tmp_path / "model", data)) == "model_unreadable"


def test_a_directory_that_torch_would_find_and_zipfile_does_not_is_refused(tmp_path: Path) -> None:
    honest = Honest(dict(TENSORS), {}, tmp_path / "flag")
    data = zip_end_that_leads_to_a_hidden_checkpoint.make(Random(0), honest)  # noqa: S311 - repeatable
    path = write(tmp_path / "model", data)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported"):  # of the hidden one: what is shown is sound
        torch.load(path, weights_only=True)
    assert code_of(path) == "model_container_invalid"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_off_anywhere_is_refused_as_such(tmp_path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file(TENSORS, tmp_path / "whole")
        data = (tmp_path / "whole").read_bytes()
    else:
        data = saved(TENSORS, new=kind == "zip")
    for length in {*range(1, len(data), len(data) // 40), len(data) - 1}:
        code = code_of(write(tmp_path / "cut", data[:length]))
        if length > 20:  # before that nothing tells what it was to become
            assert code == "model_truncated", length


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_are_loaded_or_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file(TENSORS, tmp_path / "whole")
        data = (tmp_path / "whole").read_bytes()
    else:
        data = saved(TENSORS, new=kind == "zip")
    generator = np.random.default_rng(0)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(generator.integers(1, 5)):
            damaged[generator.integers(min(len(data), 1500))] = generator.integers(256)
        try:
            load_weights(write(tmp_path / "damaged", bytes(damaged)), LIMITS)
        except RefusedError:
            refusals += 1
    assert refusals > 50


# --- safetensors headers ---------------------------------------------------------------------------------------------


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def safetensors(header: dict[str, Any] | str | bytes, data: bytes = bytes(8)) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text)) + text + data


SOUND = json.dumps(entry(0, 8))
HEADERS: dict[str, bytes] = {
    "the same name twice": safetensors(f'{{"a": {SOUND}, "a": {SOUND}}}'),
    "a field twice": safetensors('{"a": {"dtype": "U8", "dtype": "I8", "shape": [8], "data_offsets": [0, 8]}}'),
    "an empty shape of any size": safetensors({"a": entry(0, 8), "b": entry(8, 8, [0, 2**62])}),
    "a dimension too large": safetensors({"a": entry(0, 8, [2**31 + 1])}),
    "a negative dimension": safetensors({"a": entry(0, 8, [-8])}),
    "a fraction as dimension": safetensors({"a": {**entry(0, 8), "shape": [8.0]}}),
    "a truth as dimension": safetensors({"a": entry(0, 1, [True])}, b"x"),
    "an unknown dtype": safetensors({"a": entry(0, 8, dtype="F8_E4M3")}),
    "a shape that is not its size": safetensors({"a": entry(0, 8, [7])}),
    "unknown fields": safetensors({"a": {**entry(0, 8), "code": "x"}}),
    "overlapping tensors": safetensors({"a": entry(0, 8), "b": entry(4, 8)}),
    "a gap": safetensors({"a": entry(0, 4), "b": entry(6, 8)}),
    "bytes behind": safetensors({"a": entry(0, 4)}),
    "a name with NUL": safetensors({"a\0": entry(0, 8)}),
    "a name with markup": safetensors({"<script>": entry(0, 8)}),
    "an empty name": safetensors({"": entry(0, 8)}),
    "a long name": safetensors({"x" * 257: entry(0, 8)}),
    "much metadata": safetensors({"__metadata__": {"a": "x" * 65536}, "a": entry(0, 8)}),
    "metadata that are no strings": safetensors({"__metadata__": {"a": 1}, "a": entry(0, 8)}),
    "too many tensors": safetensors({f"t{i}": entry(0, 0, [0]) for i in range(20_002)}),
    "a header of more than 4 MiB": safetensors('{"a": ' + SOUND + " " * 2**22 + "}"),
    "no JSON": safetensors(b'{"a": \xff}'),
    "no number": safetensors('{"a": NaN}'),
    "deep nesting": safetensors('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_an_odd_safetensors_header_is_refused(tmp_path: Path, case: str) -> None:
    assert code_of(write(tmp_path / "model", HEADERS[case])) == "model_header_invalid"


def test_safetensors_without_tensors_hold_no_weights(tmp_path: Path) -> None:
    assert code_of(write(tmp_path / "model", safetensors({"__metadata__": {"a": "b"}}, b""))) == "model_no_weights"


def test_the_same_header_without_the_oddity_is_taken(tmp_path: Path) -> None:
    sound = safetensors({"__metadata__": {"format": "pt"}, "a": entry(0, 7), "b": entry(7, 8, [])})
    assert load_weights(write(tmp_path / "model", sound), LIMITS).shapes() == {"a": (7,), "b": ()}
