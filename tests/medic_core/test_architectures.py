from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks.architectures import describe, problems_with_one_step, smallest
from medic_core.architectures import (
    authors_layers,
    compare_shapes,
    find_architecture,
    num_classes_of,
    shapes_of,
    suggest_architectures,
)
from medic_core.architectures.fitting import without_memory
from medic_core.architectures.recipes import usual_names
from medic_core.config import DistillConfig, MedicConfig, Preprocessing, ScratchConfig
from medic_core.data import Batches
from medic_core.errors import UnknownArchitectureError, UnsupportedArchitectureError
from medic_core.removal import Suspect, remove_backdoor

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MEDIC_TEST_DATA", ROOT.parent / "shared" / "data"))
INDEX = json.loads((files("medic_core") / "architectures.json").read_text(encoding="utf-8"))
USABLE = [entry for entry in INDEX if entry["refused"] is None]
OURS = [entry["name"] for entry in INDEX if entry["name"].startswith("medic/")]


def smallest_of_each_family():
    chosen = {}
    for entry in USABLE:
        family = (entry["name"].partition("/")[0], entry["family"])
        if family not in chosen or entry["parameters"] < chosen[family]["parameters"]:
            chosen[family] = entry
    return sorted(entry["name"] for entry in chosen.values())


ONE_PER_FAMILY = smallest_of_each_family()
LIGHT = [entry["name"] for entry in USABLE if entry["parameters"] < 1e7 and entry["tensors"] < 400]
STEPPED = sorted({*LIGHT, *ONE_PER_FAMILY, "medic/resnet34", "torchvision/swin_v2_t"})


# --- the authors' network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("checkpoint", "right"), [("badnet", 890), ("cleanlabel", 882)])
def test_the_authors_checkpoints_load_strictly_and_are_as_accurate_as_published(checkpoint, right):
    weights, images = DATA / "checkpoints" / f"{checkpoint}-wrn16-1.pth.tar", DATA / "cifar10" / "test-1000.zip"
    if not (weights.exists() and images.exists()):
        pytest.skip(f"{weights} or {images} is absent; MEDIC_TEST_DATA says where they are")
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    model = find_architecture("medic/wide_resnet16_1", num_classes=10).build().eval()
    model.load_state_dict(state, strict=True)
    inputs, labels = image_folder(images)
    with torch.no_grad():
        predicted = torch.cat([model(batch) for batch in inputs.split(250)]).argmax(dim=1)
    assert len(state) == 82
    assert len(labels) == 1000
    assert (predicted == labels).sum().item() == right
    assert suggest_architectures({key: tuple(tensor.shape) for key, tensor in state.items()}) == (
        "medic/wide_resnet16_1",
    )


def image_folder(path):
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        classes = sorted({name.split("/")[0] for name in names})
        pixels = np.stack([np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names])
    labels = torch.tensor([classes.index(name.split("/")[0]) for name in names])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


def test_in_a_wide_resnet_the_authors_record_the_stem_and_the_blocks_in_forward_order():
    blocks = [f"block{group}.layer.{number}" for group in (1, 2, 3) for number in (0, 1)]
    expected = [
        "conv1",
        *(f"{block}.{layer}" for block in blocks for layer in ("bn1", "conv1", "bn2", "conv2")),
    ]
    assert len(expected) == 25
    assert layers_of("medic/wide_resnet16_1") == tuple(expected)


def layers_of(name):
    with without_memory():
        architecture = find_architecture(name, num_classes=10)
        return authors_layers(architecture, architecture.build())


@pytest.mark.parametrize("name", ["medic/resnet34", "torchvision/resnet34"])
def test_in_a_resnet_the_authors_record_all_but_the_shortcuts(name):
    stages = [(1, 3), (2, 4), (3, 6), (4, 3)]
    blocks = [f"layer{stage}.{number}" for stage, count in stages for number in range(count)]
    expected = [
        "conv1",
        "bn1",
        *(f"{block}.{layer}" for block in blocks for layer in ("conv1", "bn1", "conv2", "bn2")),
        "fc",
    ]
    assert layers_of(name) == tuple(expected)


@pytest.mark.parametrize(
    ("name", "shortcut", "recorded"),
    [
        ("medic/preact_resnet18", "shortcut", "linear"),
        ("torchvision/regnet_y_400mf", "proj", "fc"),
        ("torchvision/maxvit_t", "proj", "classifier.5"),
    ],
)
def test_a_shortcut_is_never_recorded_whatever_its_name(name, shortcut, recorded):
    assert any(shortcut in key.split(".") for key in shapes_of(name, num_classes=10, options={}))
    layers = layers_of(name)
    assert recorded in layers
    assert not any(shortcut in layer.split(".") for layer in layers)


def test_a_projection_inside_an_attention_is_no_shortcut():
    assert "features.1.0.attn.proj" in layers_of("torchvision/swin_t")


def test_what_puts_out_the_same_for_every_image_is_not_recorded():
    assert "features.1.0.attn.cpb_mlp.0.weight" in shapes_of("torchvision/swin_v2_t", num_classes=10, options={})
    assert not any("cpb_mlp" in layer for layer in layers_of("torchvision/swin_v2_t"))


# --- the CIFAR family -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_the_depth_of_a_cifar_resnet_counts_its_convolutions_and_its_linear_layer(depth):
    model = find_architecture(f"medic/resnet{depth}", num_classes=10).build()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == depth
    assert not any("downsample" in key for key in model.state_dict())


def test_the_sixteen_layers_of_resnet16_are_those_of_wrn_16_1():
    layers = [
        sorted(tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
        for model in (find_architecture(f"medic/{name}", num_classes=10).build() for name in SIXTEEN)
    ]
    assert len(layers[0]) == 16
    assert layers[0] == layers[1]


SIXTEEN = ("resnet16", "wide_resnet16_1")


@pytest.mark.parametrize("name", ["medic/wide_resnet10_2", "medic/resnet20", "medic/resnet16", "medic/mobilenet_v1"])
def test_an_untrained_model_of_ours_starts_as_the_authors_students_do(name):
    torch.manual_seed(0)
    for module in find_architecture(name, num_classes=10).build().modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(std, rel=0.1)
            assert abs(module.weight.mean().item()) < std / 10
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Linear):
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", OURS)
def test_our_models_have_neither_hooks_nor_in_place_activations(name):
    with without_memory():
        model = find_architecture(name, num_classes=10).build()
    for module in model.modules():
        assert [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks] == []
        assert not getattr(module, "inplace", False)


@pytest.mark.parametrize("name", [name for name in ONE_PER_FAMILY if name.startswith("medic/")])
def test_our_models_give_the_same_logits_for_an_image_whatever_its_batch(name):
    torch.manual_seed(0)
    model = find_architecture(name, num_classes=7).build().eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    assert together.shape == (3, 7)
    torch.testing.assert_close(together, alone)


# --- look-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("medic/wide_resnet16", "medic/wide_resnet16_"),
        ("resnet18", "torchvision/resnet18"),
        ("timm/resnet50", "torchvision/resnet50"),
        ("torchvision/vgg11bn", "torchvision/vgg11_bn"),
        ("medic/wide_resnet17_1", "6n + 4"),
        ("medic/wide_resnet16_999", "from 1 to 20"),
        ("medic/resnet18", "torchvision/resnet18"),
        ("medic/resnet016", "medic/resnet16"),
        ("", "medic/ or torchvision/"),
    ],
)
def test_an_unknown_name_is_refused_with_what_may_have_been_meant(name, suggestion):
    with pytest.raises(UnknownArchitectureError) as raised:
        find_architecture(name, num_classes=10)
    assert suggestion in str(raised.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torchvision/googlenet", "auxiliary"),
        ("torchvision/inception_v3", "auxiliary"),
        ("torchvision/quantized_resnet18", "quantized"),
        ("torchvision/fcn_resnet50", "no image classifier"),
    ],
)
def test_what_cannot_be_repaired_is_refused_by_name_with_the_reason(name, reason):
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        find_architecture(name, num_classes=10)


def test_every_wrong_option_is_named_with_what_is_allowed():
    with pytest.raises(UnknownArchitectureError) as raised:
        find_architecture(
            "torchvision/vit_b_16", num_classes=10, options={"image_size": 30, "dropout": 1.0, "heads": 3}
        )
    size, dropout, heads = raised.value.problems
    assert "multiple of 16" in size
    assert "below 1" in dropout
    assert "'heads'" in heads
    assert "dropout, image_size" in heads


@pytest.mark.parametrize("name", ["medic/wide_resnet16_1", "medic/vgg11", "torchvision/mobilenet_v3_small"])
def test_the_dropout_that_is_asked_for_is_built(name):
    model = find_architecture(name, num_classes=10, options={"dropout": 0.25}).build()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}


def test_without_options_a_wide_resnet_drops_nothing_and_a_vgg_does():
    assert {m.p for m in built("medic/wide_resnet16_1").modules() if isinstance(m, nn.Dropout)} == {0.0}
    assert {m.p for m in built("medic/vgg11").modules() if isinstance(m, nn.Dropout)} == {0.5}


def built(name):
    return find_architecture(name, num_classes=10).build()


def test_a_model_is_drawn_from_the_callers_random_state():
    architecture = find_architecture("medic/resnet8", num_classes=10)
    torch.manual_seed(3)
    first, second = architecture.build(), architecture.build()
    torch.manual_seed(3)
    again = architecture.build()
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


# --- fitting ----------------------------------------------------------------------------------------------------------

SHAPES = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([(), (1,), (2, 3)]))


@given(SHAPES, SHAPES)
def test_a_comparison_says_of_every_key_once_how_it_differs(expected, given_):
    found = compare_shapes(expected, given_)
    differing = [*found.missing, *found.unexpected, *(key for key, *_ in found.mismatched)]
    assert sorted(differing) == sorted(
        key for key in expected.keys() | given_.keys() if expected.get(key) != given_.get(key)
    )
    assert set(found.missing).isdisjoint(given_)
    assert set(found.unexpected).isdisjoint(expected)
    assert all(expected[key] == wanted and given_[key] == got for key, wanted, got in found.mismatched)
    assert found.fits == (expected == given_)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_the_tensors_of_an_architecture_suggest_it_and_tell_the_number_of_classes(name):
    shapes = shapes_of(name, num_classes=17, options={})
    assert suggest_architectures(shapes) == (name,)
    assert num_classes_of(name, {}, shapes) == 17


def test_shapes_are_those_of_the_built_model_and_cost_no_randomness():
    for name in ("medic/resnet16", "torchvision/regnet_x_400mf"):
        before = torch.get_rng_state()
        shapes = shapes_of(name, num_classes=5, options={})
        assert torch.equal(torch.get_rng_state(), before)
        model = find_architecture(name, num_classes=5).build()
        assert shapes == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_options_change_the_shapes_that_are_expected():
    small = shapes_of("torchvision/vit_b_16", num_classes=4, options={"image_size": 32})
    assert small["encoder.pos_embedding"] == (1, 5, 768)
    assert num_classes_of("torchvision/vit_b_16", {"image_size": 32}, small) == 4


def test_nothing_is_suggested_where_one_shape_differs_or_the_head_contradicts_itself():
    shapes = shapes_of("medic/resnet20", num_classes=10, options={})
    assert suggest_architectures({**shapes, "conv1.weight": (16, 1, 3, 3)}) == ()
    assert suggest_architectures({**shapes, "fc.bias": (11,)}) == ()
    assert suggest_architectures({}) == ()
    assert num_classes_of("medic/resnet20", {}, {**shapes, "fc.bias": (11,)}) is None
    assert num_classes_of("medic/resnet20", {}, {"conv1.weight": (16, 3, 3, 3)}) is None


# --- the index --------------------------------------------------------------------------------------------------------


def test_the_index_lists_every_usual_name_and_every_torchvision_classifier():
    listed = [entry["name"] for entry in INDEX]
    classifiers = torchvision.models.list_models(module=torchvision.models)
    assert listed == list(usual_names())
    assert len(classifiers) >= 80
    assert {f"torchvision/{short}" for short in classifiers} <= set(listed)


@pytest.mark.parametrize("entry", [e for e in INDEX if e["name"] in {*OURS, *ONE_PER_FAMILY}], ids=lambda e: e["name"])
def test_the_index_is_up_to_date(entry):
    assert {**describe(entry["name"]), "stepped_with": entry["stepped_with"]} == entry


def test_an_architecture_is_listed_as_refused_just_when_it_is():
    for entry in INDEX:
        assert entry["refused"] == refusal_of(entry["name"])


def refusal_of(name):
    try:
        find_architecture(name, num_classes=10)
    except UnsupportedArchitectureError as error:
        return str(error)
    return None


def test_the_index_is_read_without_torch():
    script = (
        "import importlib.resources, json, sys\n"
        "index = json.loads((importlib.resources.files('medic_core') / 'architectures.json').read_text())\n"
        "print(len(index), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(len(INDEX)), "False"]


# --- cloning works with it --------------------------------------------------------------------------------------------


def test_one_step_of_cloning_has_worked_under_the_pinned_torch_with_every_architecture_that_is_not_refused():
    pinned = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert USABLE
    assert [(entry["name"], entry["stepped_with"]) for entry in USABLE if [entry["stepped_with"]] != pinned] == []


@pytest.mark.parametrize("name", STEPPED)
def test_one_step_of_cloning_works_and_leaves_the_suspect_alone(name):
    assert problems_with_one_step(*smallest(name)) == []


SENTINEL = 12345.678


class Untrained(Exception):  # noqa: N818 - it carries the clone out before the first step
    pass


@pytest.mark.parametrize("method", ["medic", "scratch", "distill"])
@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_nothing_of_the_suspect_is_in_an_untrained_clone(name, method, monkeypatch):
    architecture, side = smallest(name)
    suspect = architecture.build().eval()
    with torch.no_grad():
        for tensor in tensors_of(suspect):
            if tensor.is_floating_point() or tensor.dim() == 0:  # tables of indices must stay such
                tensor.fill_(SENTINEL)

    def stop_before_the_first_step(model, *_args, **_settings):
        raise Untrained(model)

    monkeypatch.setattr(f"medic_core.removal.{method}.train", stop_before_the_first_step)
    images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    clean = Batches(images, torch.tensor([0, 1]), Preprocessing(input_size=(side, side)))
    cloning = MedicConfig(layers=("authors", "convolution"), corruption=0)  # to find which waves lead it takes a minute
    config = {"medic": cloning, "scratch": ScratchConfig(), "distill": DistillConfig()}[method]
    with pytest.raises(Untrained) as stopped:
        remove_backdoor(Suspect(suspect, architecture), clean, config)
    clone = stopped.value.args[0]
    assert len(tensors_of(clone)) == len(tensors_of(suspect)) > 0
    for tensor in tensors_of(clone):
        assert not (tensor == torch.tensor(SENTINEL).to(tensor.dtype)).any()
    assert storages_of(clone).isdisjoint(storages_of(suspect))


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


def storages_of(model):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(model)}
