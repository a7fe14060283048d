"""What each rival method does, beside keeping the contract: its paper's definitions, written slowly."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18, squeezenet1_1, vgg11

from medic_core.config import (
    AdversarialPruningConfig,
    AttentionDistillationConfig,
    Config,
    DistillConfig,
    FinePruneConfig,
    FineTuneConfig,
    HeadShiftConfig,
    LipschitzPruningConfig,
    ModeConnectivityConfig,
    Preprocessing,
    ScratchConfig,
    SharedAdversarialConfig,
)
from medic_core.data import STATISTICS_EPOCH, Batches, normalize
from medic_core.errors import UnsupportedArchitectureError
from medic_core.evaluation import accuracy, confusion_matrix
from medic_core.folding import normalized_convolutions
from medic_core.removal import Suspect, remove_backdoor
from medic_core.removal.adversarial_pruning import MaskedChannels, worst_noise
from medic_core.removal.attention_distillation import attention_distance, attention_map, stage_ends
from medic_core.removal.distill import distillation_loss
from medic_core.removal.fine_prune import cut_dormant, dormant_first, find_outlet
from medic_core.removal.head_shift import find_head
from medic_core.removal.lipschitz_pruning import lipschitz_bounds
from medic_core.removal.mode_connectivity import curve_point, measure_normalizations
from medic_core.removal.shared_adversarial import divergence, shared_examples, unsaid
from medic_core.removal.training import State, micro_batches, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


class Recording:
    """A checkpoint that keeps the state after every epoch, each as a file would."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def load(self) -> None:
        return None

    def save(self, state: State, *, epoch: int) -> None:
        assert epoch == len(self.states) + 1
        file = io.BytesIO()
        torch.save(state, file)
        self.states.append(torch.load(io.BytesIO(file.getvalue()), weights_only=True))


def random_images(model_side: int, *, seed: int = 0, count: int = 2) -> Tensor:
    return torch.rand(count, 3, model_side, model_side, generator=torch.Generator().manual_seed(seed))


def small(build: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    with seeded(0):
        return build(num_classes=3, **settings).eval()


def transformer() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8}
    return small(VisionTransformer, **sizes)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], msg=lambda text, name=name: f"{name}: {text}")


# --- fine_prune ------------------------------------------------------------------------------------------------------

PRUNE = FinePruneConfig(epochs=2, batch_size=8, accuracy_tolerance=0.1)


def right(model: nn.Module, clean: Batches) -> int:
    return accuracy(confusion_matrix(model, clean, num_classes=3)).count


@pytest.fixture
def labelled(suspect: Suspect, clean: Batches) -> Batches:
    """The clean images with labels that the suspect gets right, all of them there."""
    images = next(clean.in_order())[0]
    with torch.no_grad():
        suspect.model.fc.bias.sub_(suspect.model(images).mean(dim=0))
        return dataclasses.replace(clean, labels=suspect.model(images).argmax(dim=1))


def dead_columns(weight: Tensor) -> list[int]:
    return (weight == 0).all(dim=0).nonzero().flatten().tolist()


def test_pruned_channels_are_dead_after_every_epoch_of_fine_tuning(suspect: Suspect, labelled: Batches) -> None:
    pruned = copy.deepcopy(suspect.model)
    outlet = find_outlet(pruned, next(labelled.in_order())[0])
    cut_dormant(pruned, outlet, labelled, PRUNE, num_classes=3)
    cut = dead_columns(outlet.layer.weight)
    assert 0 < len(cut) < 64
    checkpoint = Recording()
    found = remove_backdoor(suspect, labelled, PRUNE, checkpoint=checkpoint)
    for state in checkpoint.states:
        assert dead_columns(state["model"]["fc.weight"]) == cut
    assert dead_columns(found.fc.weight) == cut


def test_a_channel_that_never_had_weight_is_not_pruned_and_may_gain_some(suspect: Suspect, labelled: Batches) -> None:
    with torch.no_grad():
        suspect.model.fc.weight[:, 5] = 0
    kept_all = dataclasses.replace(PRUNE, accuracy_tolerance=0.0)
    assert 5 not in dead_columns(remove_backdoor(suspect, labelled, kept_all).fc.weight)


def test_pruning_stops_before_it_costs_more_than_is_tolerated(suspect: Suspect, labelled: Batches) -> None:
    model = copy.deepcopy(suspect.model)
    outlet = find_outlet(model, next(labelled.in_order())[0])
    order, before = dormant_first(model, outlet, labelled).tolist(), right(model, labelled)
    cut_dormant(model, outlet, labelled, PRUNE, num_classes=3)
    cut = dead_columns(outlet.layer.weight)
    assert sorted(order[: len(cut)]) == cut
    assert before - right(model, labelled) <= PRUNE.accuracy_tolerance * len(labelled)
    with torch.no_grad():
        outlet.layer.weight[:, order[len(cut)]] = 0
    assert before - right(model, labelled) > PRUNE.accuracy_tolerance * len(labelled)


def test_channels_are_ordered_by_the_mean_of_the_last_activation(suspect: Suspect, clean: Batches) -> None:
    model = copy.deepcopy(suspect.model)
    with torch.no_grad():
        model.bn1.weight[5], model.bn1.bias[5] = 0.0, -1.0  # after the ReLU it is never seen
    outlet = find_outlet(model, next(clean.in_order())[0])
    inputs = torch.cat([images for images, _ in clean.in_order(batch_size=7)])
    with torch.no_grad():
        features = F.relu(model.bn1(model.block3(model.block2(model.block1(model.conv1(inputs))))))
    means = features.mean(dim=(0, 2, 3))
    order = dormant_first(model, outlet, clean)
    assert order[0] == 5
    assert means[order].diff().min() >= -1e-6


def test_a_channel_that_is_flattened_is_cut_at_all_its_positions(clean: Batches) -> None:
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    outlet = find_outlet(net, next(clean.in_order())[0])
    assert (outlet.layer, outlet.positions) == (net[3], 16)
    cut_dormant(net, outlet, clean, dataclasses.replace(PRUNE, accuracy_tolerance=1.0), num_classes=3)
    assert dead_columns(net[3].weight) == list(range(64))  # everything may go, so everything does
    with seeded(0):
        net[3].reset_parameters()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0.0, -1.0
    order = dormant_first(net, outlet, clean)
    assert order[0] == 2
    assert len(order) == 4


@pytest.mark.parametrize(
    ("build", "side", "inputs", "positions"),
    [(resnet18, 32, 512, 1), (vgg11, 32, 512 * 49, 49), (mobilenet_v2, 32, 1280, 1)],
    ids=["resnet", "vgg", "mobilenet"],
)
def test_the_outlet_of_known_families(build: Callable[..., nn.Module], side: int, inputs: int, positions: int) -> None:
    outlet = find_outlet(small(build), random_images(side))
    assert (outlet.layer.in_features, outlet.positions) == (inputs, positions)


@pytest.mark.parametrize(
    "net", [transformer(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32**2, 3)), small(squeezenet1_1)]
)
def test_pruning_needs_a_convolution_before_a_linear_layer(net: nn.Module) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="fine_prune needs"):
        find_outlet(net, random_images(32))


# --- attention_distillation ------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4), st.integers(0, 2**31))
def test_attention_agrees_with_its_definition(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    taught, learnt = torch.randn(2, batch, channels, height, width, generator=generator, dtype=torch.float64)

    def by_definition(features: Tensor) -> list[list[float]]:
        maps = []
        for image in features.tolist():
            places = itertools.product(range(height), range(width))
            sums = [sum(abs(channel[row][column]) ** 2 for channel in image) for row, column in places]
            length = math.sqrt(sum(value**2 for value in sums))
            maps.append([value / length for value in sums])
        return maps

    torch.testing.assert_close(attention_map(taught), torch.tensor(by_definition(taught), dtype=torch.float64))
    pairs = zip(itertools.chain(*by_definition(taught)), itertools.chain(*by_definition(learnt)), strict=True)
    expected = sum((one - other) ** 2 for one, other in pairs) / (batch * height * width)
    assert float(attention_distance(taught, learnt)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("build", "ends"),
    [
        (resnet18, ["layer2", "layer3", "layer4"]),
        (vgg11, ["features.13", "features.18", "features"]),
        (mobilenet_v2, ["features.6", "features.13", "features"]),
    ],
    ids=["resnet", "vgg", "mobilenet"],
)
def test_attention_is_compared_at_the_ends_of_the_last_resolutions(
    build: Callable[..., nn.Module], ends: list[str]
) -> None:
    assert stage_ends(small(build), random_images(64)) == ends


def test_attention_in_a_wide_residual_network_is_that_of_its_three_groups(suspect: Suspect) -> None:
    assert stage_ends(suspect.model, random_images(16)) == ["block1", "block2", "block3"]


def test_attention_needs_two_resolutions() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="fewer than two at 32×32"):
        stage_ends(transformer(), random_images(32))


def test_the_teacher_is_the_fine_tuned_suspect_and_without_attention_the_student_too(
    suspect: Suspect, clean: Batches
) -> None:
    config = AttentionDistillationConfig(teacher_epochs=1, epochs=2, batch_size=8, attention_weight=0.0)
    shared = {each.name: getattr(config, each.name) for each in dataclasses.fields(Config)}
    checkpoint = Recording()
    student = remove_backdoor(suspect, clean, config, checkpoint=checkpoint)
    taught = remove_backdoor(suspect, clean, FineTuneConfig(**{**shared, "epochs": 1}))
    tuned = remove_backdoor(suspect, clean, FineTuneConfig(**shared))
    teacher = checkpoint.states[-1]["left"]["models"][0]
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in taught.state_dict().items())
    close(parameters(student), parameters(tuned))


def test_attention_draws_the_student_to_the_teacher(suspect: Suspect, clean: Batches) -> None:
    config = AttentionDistillationConfig(teacher_epochs=1, epochs=4, batch_size=8, learning_rate=1e-3)
    losses = {}
    for weight in (1.0, 1000.0):
        seen: list[Any] = []
        remove_backdoor(suspect, clean, dataclasses.replace(config, attention_weight=weight), progress=seen.append)
        losses[weight] = [row["attention_loss"] / weight for row in seen[-1].history if row["stage"] == 2]
    assert losses[1000.0][-1] < 0.9 * losses[1.0][-1]


# --- mode_connectivity -----------------------------------------------------------------------------------------------

CURVE = ModeConnectivityConfig(endpoint_epochs=1, epochs=2, batch_size=8)


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_the_curve_is_the_quadratic_bezier_and_passes_through_its_ends(position: float, seed: int) -> None:
    start, bend, end = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def at(position: float) -> Tensor:
        return curve_point({"w": start}, {"w": bend}, {"w": end}, position=position)["w"]

    torch.testing.assert_close(at(0.0), start)
    torch.testing.assert_close(at(1.0), end)
    inner = torch.lerp(torch.lerp(start, bend, position), torch.lerp(bend, end, position), position)  # de Casteljau
    torch.testing.assert_close(at(position), inner)


@pytest.mark.parametrize("position", [0.0, 0.1, 1.0])
def test_the_model_returned_is_the_one_at_its_position_on_the_curve(
    position: float, suspect: Suspect, clean: Batches
) -> None:
    checkpoint = Recording()
    config = dataclasses.replace(CURVE, curve_position=position)
    found = parameters(remove_backdoor(suspect, clean, config, checkpoint=checkpoint))
    start, end = checkpoint.states[-1]["left"]["models"][0], parameters(suspect.model)
    bend = {name: checkpoint.states[-1]["stage"]["model"][name] for name in end}
    share = ((1 - position) ** 2, 2 * position * (1 - position), position**2)
    close(found, {name: share[0] * start[name] + share[1] * bend[name] + share[2] * end[name] for name in end})
    assert any((bend[name] - (start[name] + end[name]) / 2).abs().max() > 1e-4 for name in end)  # it was bent


def test_normalisations_are_measured_on_the_clean_images(suspect: Suspect, clean: Batches) -> None:
    model = copy.deepcopy(suspect.model)
    with torch.no_grad():
        model.conv1.weight.mul_(3)
    measure_normalizations(model, clean, CURVE)
    norm = model.block1.layer[0].bn1  # takes the first convolution's output
    with torch.no_grad():
        batches = [model.conv1(images) for images, _ in clean.shuffled(CURVE, epoch=STATISTICS_EPOCH)]
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == suspect.model.block1.layer[0].bn1.momentum
    assert not norm.training


# --- adversarial_pruning ---------------------------------------------------------------------------------------------

MASKS = AdversarialPruningConfig(epochs=3, batch_size=8, learning_rate=5.0, threshold=0.8)


def test_masks_stay_in_the_unit_interval(suspect: Suspect, clean: Batches) -> None:
    checkpoint = Recording()
    remove_backdoor(suspect, clean, MASKS, checkpoint=checkpoint)
    for state in checkpoint.states:
        masks = torch.cat([tensor for name, tensor in state["model"].items() if name.startswith("masks.")])
        assert 0 <= masks.min() < MASKS.threshold < masks.max() <= 1


def test_only_channels_below_the_threshold_are_cut_and_say_nothing_about_the_image(
    suspect: Suspect, clean: Batches
) -> None:
    checkpoint = Recording()
    found = remove_backdoor(suspect, clean, MASKS, checkpoint=checkpoint)
    names = MaskedChannels(suspect.frozen()).names
    outputs: dict[str, Tensor] = {}
    for name in names:
        found.get_submodule(name).register_forward_hook(lambda *call, name=name: outputs.update({name: call[2]}))
    with torch.no_grad():
        found(random_images(16, count=5))
    before, after, last = suspect.model.state_dict(), found.state_dict(), checkpoint.states[-1]["model"]
    for number, name in enumerate(names):
        cut = last[f"masks.{number}"] <= MASKS.threshold
        expected = before.pop(f"{name}.weight").masked_fill(cut, 0)
        assert torch.equal(after.pop(f"{name}.weight"), expected)
        constant = after[f"{name}.bias"].view(1, -1, 1, 1).expand_as(outputs[name])
        assert torch.equal(outputs[name][:, cut], constant[:, cut])
        assert (outputs[name][:, ~cut].var(dim=(0, 2, 3)) > 0).all()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_masks_of_ones_leave_the_network_as_it_is(suspect: Suspect) -> None:
    images = random_images(16)
    with torch.no_grad():
        assert torch.equal(MaskedChannels(suspect.frozen())(images), suspect.model(images))


def test_the_adversary_raises_the_loss_within_its_limit_also_in_micro_batches(suspect: Suspect, clean: Batches) -> None:
    masked = MaskedChannels(suspect.frozen())  # in eval mode, so that a micro-batch is no other batch
    images, labels = next(clean.in_order())
    noises = []
    for size in (None, 5):
        with seeded(3):
            noises.append(worst_noise(masked, images, labels, dataclasses.replace(MASKS, micro_batch_size=size)))
    for whole, parts in zip(*noises, strict=True):
        for one, other in zip(whole, parts, strict=True):
            assert one.abs().max() <= MASKS.perturbation
            assert (one != other).float().mean() < 0.05  # only the sign of a gradient near 0 may differ
    with seeded(3), torch.no_grad():
        start = [limit * (2 * torch.rand(2, len(mask)) - 1) for limit, mask in ((0.4, mask) for mask in masked.masks)]
        losses = [F.cross_entropy(masked(images, noise), labels) for noise in (start, noises[0])]
    assert losses[1] > losses[0]


def test_masks_need_batch_normalisation() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="adversarial_pruning masks"):
        MaskedChannels(transformer())


# --- distill ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.5, 10), st.integers(0, 2**31))
def test_distillation_agrees_with_its_definition(batch: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    taught, learnt = torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    one, other = (taught / temperature).softmax(dim=1), (learnt / temperature).softmax(dim=1)
    expected = temperature**2 * (one * (one / other).log()).sum()
    torch.testing.assert_close(distillation_loss(taught, learnt, temperature=temperature), expected)
    assert distillation_loss(taught, taught + 1, temperature=temperature).abs() < 1e-9


def test_without_its_weight_distillation_is_training_from_scratch(suspect: Suspect, clean: Batches) -> None:
    config = DistillConfig(epochs=1, batch_size=8, distillation_weight=0.0)
    shared = {each.name: getattr(config, each.name) for each in dataclasses.fields(Config)}
    scratch = remove_backdoor(suspect, clean, ScratchConfig(**shared))
    distilled = parameters(remove_backdoor(suspect, clean, config))
    for name, weight in parameters(scratch).items():
        torch.testing.assert_close(distilled[name], weight, rtol=0, atol=2e-3)  # another memory format, other sums


# --- head_shift ------------------------------------------------------------------------------------------------------


def test_the_head_keeps_its_norm_after_every_step(suspect: Suspect, clean: Batches) -> None:
    checkpoint = Recording()
    config = HeadShiftConfig(epochs=4, batch_size=len(clean))  # one step an epoch
    remove_backdoor(suspect, clean, config, checkpoint=checkpoint)
    for state in checkpoint.states:
        torch.testing.assert_close(state["model"]["fc.weight"].norm(), suspect.model.fc.weight.norm())


def test_the_head_is_pushed_away_from_what_it_was(suspect: Suspect, clean: Batches) -> None:
    alike = []
    for weight in (0.0, 5.0):
        config = HeadShiftConfig(epochs=10, batch_size=8, shift_weight=weight)
        head = remove_backdoor(suspect, clean, config).fc.weight.detach()
        alike.append(float(F.cosine_similarity(head.flatten(), suspect.model.fc.weight.detach().flatten(), dim=0)))
    assert alike[0] > -0.5
    assert alike[1] < -0.9


def test_the_head_is_the_linear_layer_of_the_logits() -> None:
    assert find_head(net := small(vgg11), random_images(32)) is net.classifier[6]
    assert find_head(net := transformer(), random_images(32)) is net.heads.head
    with pytest.raises(UnsupportedArchitectureError, match="head_shift draws"):
        find_head(small(squeezenet1_1), random_images(32))


# --- shared_adversarial ----------------------------------------------------------------------------------------------

ATTACK = SharedAdversarialConfig(epochs=1, batch_size=8)
STRANGE = Preprocessing(
    input_size=(16, 16), color_order="BGR", value_range=(1.0, -1.0), mean=(0.5, 0.0, -0.2), std=(0.5, 1.0, 2.0)
)


@pytest.mark.parametrize("preprocessing", [Preprocessing(input_size=(16, 16)), STRANGE], ids=["plain", "strange"])
def test_deceiving_images_stay_in_range_and_near(
    preprocessing: Preprocessing, suspect: Suspect, clean: Batches
) -> None:
    pixels = clean.images / 255
    images, model = normalize(pixels, preprocessing), copy.deepcopy(suspect.model)
    found = shared_examples(model, suspect.frozen(), images, clean.labels, preprocessing, ATTACK)
    reached = pixels_of(found, preprocessing)
    assert -1e-5 <= reached.min() < 0.01
    assert 0.99 < reached.max() <= 1 + 1e-5
    moved = (reached - pixels).abs().amax(dim=(0, 2, 3))  # in each colour as far as it may
    torch.testing.assert_close(moved, torch.full((3,), ATTACK.perturbation), rtol=0, atol=1e-5)


def pixels_of(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    low, high = preprocessing.value_range
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    scaled = (inputs * std + mean - low) / (high - low)
    return scaled.flip(1) if preprocessing.color_order == "BGR" else scaled


def test_deceiving_images_are_wrong_for_both_models_or_alike_as_is_asked(suspect: Suspect, clean: Batches) -> None:
    other = copy.deepcopy(suspect.model)
    with seeded(1), torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    images, labels = next(clean.in_order())

    def attacked(**weights: float) -> tuple[Tensor, Tensor]:
        config = dataclasses.replace(ATTACK, **weights)
        found = shared_examples(other, suspect.frozen(), images, labels, clean.preprocessing, config)
        with torch.no_grad():
            return other(found), suspect.model(found)

    wrong = attacked(adversarial_weight=1.0, sharing_weight=0.0)
    alike = attacked(adversarial_weight=0.0, sharing_weight=1.0)
    with torch.no_grad():
        plain = other(images), suspect.model(images)
    for attack, unattacked in zip(wrong, plain, strict=True):
        assert F.cross_entropy(attack, labels) > F.cross_entropy(unattacked, labels)
    assert divergence(*alike).sum() < 0.95 * divergence(*wrong).sum()


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**31))
def test_divergence_agrees_with_its_definition(batch: int, classes: int, seed: int) -> None:
    first, second = torch.randn(2, batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, other = first.softmax(dim=1), second.softmax(dim=1)
    middle = (one + other) / 2
    expected = ((one * (one / middle).log()).sum(dim=1) + (other * (other / middle).log()).sum(dim=1)) / 2
    torch.testing.assert_close(divergence(first, second), expected)


def test_unlearning_takes_away_what_the_suspect_says() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 0.0], [-9.0, 9.0]], requires_grad=True)
    loss = unsaid(logits, torch.tensor([0, 0, 0]))
    assert loss.isfinite().all()
    torch.testing.assert_close(loss[1], torch.tensor(2.0).log(), rtol=0, atol=1e-5)
    loss.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[1:, 0] > 0).all()  # a step down the loss lowers what is said


def test_unlearning_keeps_the_statistics_of_batch_normalisation(suspect: Suspect, clean: Batches) -> None:
    found = remove_backdoor(suspect, clean, ATTACK)
    for (name, before), after in zip(suspect.model.named_buffers(), found.buffers(), strict=True):
        assert torch.equal(before, after), name


# --- lipschitz_pruning -----------------------------------------------------------------------------------------------


def pairs_of(model: nn.Module) -> list[tuple[Any, Any]]:
    names = normalized_convolutions(model, random_images(16))
    return [(model.get_submodule(one), model.get_submodule(other)) for one, other in names]


def test_bounds_agree_with_their_definition(suspect: Suspect) -> None:
    pairs = pairs_of(suspect.model)
    assert len(pairs) == 3  # in each block the second normalisation; the first has the shortcut beside it
    for convolution, normalization in pairs:
        with torch.no_grad():
            bounds = lipschitz_bounds(convolution, normalization)
            for channel, bound in enumerate(bounds):
                matrix = convolution.weight[channel].reshape(convolution.in_channels, 9)
                largest = math.sqrt(max(torch.linalg.eigvalsh((matrix @ matrix.T).double()).tolist()))
                scale = abs(float(normalization.weight[channel]))
                scale /= math.sqrt(float(normalization.running_var[channel]) + normalization.eps)
                assert float(bound) == pytest.approx(largest * scale, rel=1e-4)


@pytest.mark.parametrize("where", ["kernel", "weight", "variance"])
def test_a_channel_that_can_change_too_much_is_cut_and_no_other(where: str, suspect: Suspect, clean: Batches) -> None:
    planted = copy.deepcopy(suspect.model)
    block = planted.block3.layer[0]
    with torch.no_grad():
        if where == "kernel":
            block.conv1.weight[7] *= 20
        elif where == "weight":
            block.bn2.weight[7] *= -20
        else:
            block.bn2.running_var[7] /= 400
        block.bn2.bias[7] = 1.0
    found = remove_backdoor(Suspect(planted, suspect.architecture), clean, LipschitzPruningConfig())
    before, after = planted.state_dict(), found.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["block3.layer.0.bn2.weight", "block3.layer.0.bn2.bias"]
    for name in changed:
        assert (before[name] != after[name]).nonzero().flatten().tolist() == [7]
        assert after[name][7] == 0


def test_clean_images_do_not_matter_to_lipschitz_pruning(suspect: Suspect, clean: Batches) -> None:
    config = LipschitzPruningConfig(deviations=1.0)
    other = dataclasses.replace(clean, images=255 - clean.images, labels=2 - clean.labels)
    first, second = (remove_backdoor(suspect, data, config).state_dict() for data in (clean, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], tensor) for name, tensor in suspect.model.state_dict().items())


def test_lipschitz_pruning_needs_a_normalised_convolution(suspect: Suspect, clean: Batches) -> None:
    with seeded(0):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()
    with pytest.raises(UnsupportedArchitectureError, match="use fine_tune or medic"):
        remove_backdoor(Suspect(net, suspect.architecture), clean, LipschitzPruningConfig())


# --- micro-batches ---------------------------------------------------------------------------------------------------


def test_what_goes_through_the_model_at_once_is_a_micro_batch() -> None:
    images, labels = torch.rand(12, 3), torch.arange(12)
    parts = list(micro_batches(images, labels, FineTuneConfig(micro_batch_size=5)))
    assert [len(some) for some, _ in parts] == [4, 4, 4]
    assert torch.equal(torch.cat([some for some, _ in parts]), images)
    assert torch.equal(torch.cat([theirs for _, theirs in parts]), labels)


@pytest.mark.parametrize(
    "config",
    [
        FineTuneConfig(epochs=1),
        FinePruneConfig(epochs=1),
        AttentionDistillationConfig(epochs=1, teacher_epochs=1, learning_rate=1e-3),
        ModeConnectivityConfig(epochs=1, endpoint_epochs=1, curve_position=0.5),
        HeadShiftConfig(epochs=1),
        SharedAdversarialConfig(epochs=1, optimizer="sgd", learning_rate=1e-3),
    ],
    ids=lambda config: config.method,
)
def test_micro_batches_add_up_to_the_batch_without_batch_normalisation(
    config: Config, suspect: Suspect, clean: Batches
) -> None:
    with seeded(0):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        ).extend([nn.Flatten(), nn.Linear(8, 3)])
    given = Suspect(net.eval(), suspect.architecture)
    whole, parts = (
        parameters(remove_backdoor(given, clean, dataclasses.replace(config, batch_size=16, micro_batch_size=size)))
        for size in (None, 5)
    )
    assert any(not torch.equal(whole[name], weight) for name, weight in net.named_parameters())
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-4, atol=1e-6)
