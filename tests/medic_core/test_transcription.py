"""The fast code against Algorithm 1 written out, in float64: statistics, importance, loss, gradient, optimiser step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.transcription import losses, mixed, spreads
from medic_core.architectures import Architecture, find_architecture
from medic_core.config import LAYER_KINDS, PRESETS, MedicConfig, Preprocessing, expand_preset
from medic_core.corruption import Waves, add_noise, distort, foreign_parts
from medic_core.data import STATISTICS_EPOCH, Batches
from medic_core.removal import Progress, Suspect, remove_backdoor
from medic_core.removal.medic import Shown, waves_for
from medic_core.removal.medic import drawn as number_drawn
from medic_core.removal.optimizers import rate_share
from medic_core.removal.training import micro_batches, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


SHAPES = st.fixed_dictionaries(
    {
        "width": st.sampled_from([1, 2]),
        "side": st.sampled_from([8, 12, 16]),
        "images": st.integers(5, 12),
        "classes": st.integers(2, 4),
        "seed": st.integers(0, 2**20),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.1, 6),
        "cloning_weight": st.floats(0.1, 20),
        "layers": st.sampled_from([("feature_maps",), ("authors",), ("convolution",), LAYER_KINDS, ("linear",)]),
        "criteria": st.sampled_from(["both", "activation", "impact"]),
        "statistics": st.sampled_from(["per_channel", "per_neuron"]),
        "gradient": st.sampled_from(["batch_mean", "per_sample"]),
        "impact": st.sampled_from(["signed", "magnitude", "relative"]),
        "normalize_importance": st.booleans(),
        "compare": st.sampled_from(["after_relu", "output"]),
        "corruption": st.sampled_from([0.0, 0.7, 1.0]),
        "mixing": st.sampled_from([0.0, 0.7]),
        "schedule": st.sampled_from(["cosine", "linear"]),
        "batch_size": st.integers(3, 5),
        "micro_batch_size": st.sampled_from([None, 2, 3]),
    }
)


def drawn(width: int, side: int, images: int, classes: int, seed: int) -> tuple[Suspect, Batches]:
    """A network whose weights are random and whose batch statistics fit its data, with that data."""
    architecture = find_architecture(f"medic/wide_resnet10_{width}", num_classes=classes)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, side, side), generator=generator, dtype=torch.uint8)
    clean = Batches(pixels, torch.arange(images) % classes, Preprocessing(input_size=(side, side), mean=(0.5,) * 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.build().train()
        model.fc.bias.data.normal_()
        for inputs, _ in clean.in_order():
            model(inputs)
    return Suspect(model.eval(), architecture), clean


def transcribed(suspect: Suspect, clean: Batches, config: MedicConfig) -> tuple[nn.Module, float, float]:
    """Train one epoch by Adam's own formulas; return the clone, with its last gradients, and both mean losses."""
    spread = spreads(suspect.model, clean.shuffled(config, epoch=STATISTICS_EPOCH), config)
    first, second = 0.0, 0.0
    with seeded(config.seed):
        clone = suspect.architecture.build().train()
        waves = waves_for(suspect.model, clean) if config.corruption else None
        torch.manual_seed(config.seed * 1_000_003)
        moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in clone.parameters()]
        for step, (images, labels) in enumerate(clean.shuffled(config, epoch=0)):
            clone.zero_grad()
            classification, cloning = 0.0, 0.0
            for some, known in micro_batches(images, labels, config):
                shown = shown_to_clone(some, waves, clean.preprocessing, config)
                found = losses(suspect.model, clone, some, shown, known, spread, config, batch=len(labels))
                (found[0] + config.cloning_weight * found[1]).backward()
                classification += float(found[0].detach())
                cloning += float(found[1].detach())
            rate = config.learning_rate * rate_share(config.schedule, step, steps=clean.steps(config), epochs=1)
            for weight, (mean, square) in zip(clone.parameters(), moments, strict=True):
                adam_step(weight, mean, square, rate=rate, decay=config.weight_decay, step=step + 1)
            first += classification * len(labels) / len(clean)
            second += cloning * len(labels) / len(clean)
    return clone, first, second


def shown_to_clone(images: Tensor, waves: Waves | None, preprocessing: Preprocessing, config: MedicConfig) -> Shown:
    """Change a batch: images at its end are distorted, and pairs around where those begin are mixed."""
    distorted = number_drawn(len(images), config.corruption)
    whole = len(images) - distorted
    before, behind = (2 * number_drawn(count // 2, config.mixing) for count in (whole, distorted))
    place, seen = slice(whole - before, whole + behind), images
    if waves:
        first = add_noise(images[:whole], config.corruption, preprocessing)
        second = distort(images[whole:], waves, preprocessing)
        seen = torch.cat([first, add_noise(second, 1.0, preprocessing)])
    shown = Shown(seen, whole, place, foreign_parts(seen[place]))
    return dataclasses.replace(shown, images=mixed(seen, shown))


def adam_step(weight: nn.Parameter, mean: Tensor, square: Tensor, *, rate: float, decay: float, step: int) -> None:
    """Kingma and Ba (2015), Algorithm 1, with weight decay added to the gradient."""
    with torch.no_grad():
        gradient = weight.grad + decay * weight
        mean.copy_(0.9 * mean + 0.1 * gradient)
        square.copy_(0.999 * square + 0.001 * gradient**2)
        weight -= rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)


def agree(suspect: Suspect, clean: Batches, config: MedicConfig) -> None:
    expected, classification, cloning = transcribed(suspect, clean, config)
    seen: list[Progress] = []
    found = remove_backdoor(suspect, clean, config, progress=seen.append)
    history = seen[-1].history[0]
    assert history["classification_loss"] == pytest.approx(classification, rel=1e-6)
    assert history["cloning_loss"] == pytest.approx(cloning, rel=1e-6)
    assert history["loss"] == pytest.approx(classification + config.cloning_weight * cloning, rel=1e-6)
    for (name, weight), (_, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_each_preset_is_algorithm_1_as_written(preset: str) -> None:
    chosen = {"preset": preset, "epochs": 1, "batch_size": 4, "optimizer": "adam"}
    agree(*drawn(width=1, side=16, images=12, classes=3, seed=3), MedicConfig(**expand_preset(chosen)))


@settings(max_examples=25, deadline=None)
@given(SHAPES, OPTIONS)
def test_every_option_is_algorithm_1_as_written(shape: dict[str, int], options: dict[str, object]) -> None:
    agree(*drawn(**shape), MedicConfig(epochs=1, optimizer="adam", learning_rate=1e-3, **options))


@dataclasses.dataclass(frozen=True)
class Apart(Architecture):
    """Builds a network in which the images of a batch do not see each other."""

    name: str = "medic/vgg11"
    num_classes: int = 3

    def build(self) -> nn.Module:
        stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2))
        return nn.Sequential(
            stem, nn.GroupNorm(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )


def gradients(suspect: Suspect, clean: Batches, config: MedicConfig) -> list[Tensor]:
    return [weight.grad for weight in remove_backdoor(suspect, clean, config).parameters() if weight.grad is not None]


@settings(max_examples=10, deadline=None)
@given(OPTIONS, st.sampled_from([2, 3]), st.integers(0, 2**20))
def test_micro_batches_have_the_gradient_of_the_whole_batch(options: dict[str, object], size: int, seed: int) -> None:
    """But for which images are corrupted and mixed, and how: that is drawn for each."""
    options |= {"batch_size": 7, "corruption": 0.0, "mixing": 0.0}
    _, clean = drawn(width=1, side=8, images=14, classes=3, seed=seed)
    with seeded(seed):
        suspect = Suspect(Apart().build().eval(), Apart())
    whole = MedicConfig(epochs=1, **options)
    parts = dataclasses.replace(whole, micro_batch_size=size)
    for one, other in zip(gradients(suspect, clean, whole), gradients(suspect, clean, parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 40), st.floats(0, 1))
def test_as_many_images_are_drawn_as_were_asked_for_on_average(count: int, share: float) -> None:
    with seeded(0):
        numbers = [number_drawn(count, share) for _ in range(400)]
    assert all(0 <= each <= count and abs(each - share * count) < 1 for each in numbers)
    assert sum(numbers) / 400 == pytest.approx(share * count, abs=0.1)


def test_two_modules_that_hand_on_the_same_tensor_count_as_two() -> None:
    suspect, clean = drawn(width=1, side=8, images=6, classes=3, seed=1)

    def loss(*layers: str) -> float:
        seen: list[Progress] = []
        config = MedicConfig(epochs=1, batch_size=6, layers=layers, corruption=0.0, mixing=0.5)
        remove_backdoor(suspect, clean, config, progress=seen.append)
        return seen[-1].history[0]["cloning_loss"]

    assert loss("block3", "block3.layer") == pytest.approx(2 * loss("block3"), rel=1e-9)
