"""Every setting of every removal method, written once.

These frozen dataclasses are the HTTP schema, the stored record and the function argument. This module imports no
torch: the API and the client read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, MaxLen

LAYER_KINDS = ("convolution", "normalization", "linear")
"""Words that ``CloningConfig.layers`` takes beside module names; each stands for all layers of its kind."""

AUTHORS_LAYERS = "authors"
"""Stands for the layers that the authors' published code records in the architecture at hand."""

FEATURE_LAYERS = "feature_maps"
"""Stands for all normalisations, where convolutions end in most networks; without any, for all other layers."""


MOST_LAYERS = 2000
"""That can be named; the deepest architecture has a third of it."""


class InvalidConfigError(ValueError):
    """A setting is out of its bounds; the message names the field and the bound."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of all settings: refuses unknown fields and, also when built in Python, values out of bounds."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        """Check every bound, because pydantic passes a ready-made instance through unchecked.

        Raises:
            InvalidConfigError: A number lies outside the bound that its annotation states, or a word is none of those.
        """
        kind: type = type(self)
        for name, words in _words(kind).items():
            if getattr(self, name) not in words:
                raise InvalidConfigError(f"{name} = {getattr(self, name)!r} is none of {', '.join(map(repr, words))}")
        for name, bounds in _bounds(kind).items():
            value = getattr(self, name)
            for bound in bounds:
                if isinstance(value, int | float) and not _within(value, bound):
                    raise InvalidConfigError(f"{name} = {value!r} violates {bound}")


@cache
def _words(config: type) -> Mapping[str, tuple[object, ...]]:
    """The values that each field of a few words may have."""
    hints = get_type_hints(config)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


@cache
def _bounds(config: type) -> Mapping[str, tuple[object, ...]]:
    """The bounds that each field's annotation states."""
    hints = get_type_hints(config, include_extras=True)
    return {name: tuple(_metadata(hint)) for name, hint in hints.items()}


def _metadata(hint: object) -> Iterator[object]:
    """What an annotation states, or one of the alternatives in it."""
    yield from getattr(hint, "__metadata__", ())
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        for alternative in get_args(hint):
            yield from _metadata(alternative)


def _within(value: float, bound: object) -> bool:
    if not math.isfinite(value):
        return False
    low: Any = getattr(bound, "ge", None)
    high: Any = getattr(bound, "le", None)
    above: Any = getattr(bound, "gt", None)
    return (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an 8-bit image becomes the input of the suspect.

    ``x = low + (high - low) * pixel / 255`` with ``(low, high) = value_range``, channels in ``color_order``, then
    ``(x - mean) / std``. Images of another size are resized to ``input_size`` (height, width), bilinear with
    antialiasing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    input_size: tuple[Annotated[int, Interval(ge=8, le=1024)], Annotated[int, Interval(ge=8, le=1024)]] = (32, 32)
    color_order: Literal["RGB", "BGR"] = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (
        1.0,
        1.0,
        1.0,
    )


Optimizer = Literal["adam", "muon", "sgd"]
Schedule = Literal["constant", "cosine", "linear", "steps"]
Epochs = Annotated[int, Interval(ge=1, le=10_000)]
BatchSize = Annotated[int, Interval(ge=2, le=4096)]
LearningRate = Annotated[float, Gt(0), Le(10)]
WeightDecay = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class Seeded(Checked):
    """What every method shares.

    Attributes:
        seed: Of all that is drawn, the images that are held out where there is no test data among it.
    """

    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class Config(Seeded):
    """What every method that trains shares: optimiser, schedule, augmentation, seed.

    Attributes:
        epochs: Passes over the clean images. None: what their number asks for, see ``Batches.epochs``.
        micro_batch_size: A batch goes through the model in parts of this many images, which bounds the memory of a
            step; the gradient is that of the whole batch, except that batch normalisation sees a part only, and that
            images are mixed within a part. None: all at once.
        optimizer: ``muon`` steps the weights of convolutions and linear layers by Muon (Jordan et al., 2024) and the
            rest, with matrices of more than 2,048 by 2,048, by Adam at a fifth of its rate; or ``adam`` or ``sgd``
            (momentum 0.9) steps everything.
        weight_decay: Times the rate, off the weights that Muon steps; on the gradient of those that the others step.
        schedule: Of the learning rate: ``cosine`` per epoch to 0; ``linear``, per step, up over the first tenth and
            then down to 0; ``steps``, a tenth after 2 epochs, a hundredth after 20, a thousandth after 30; or
            ``constant``.
        crop_padding: Random crop of the input size after zero-padding by this many pixels.
        rotation_degrees: Random rotation within ± this, nearest neighbour, black outside.
        horizontal_flip: Mirror half of the images. Switch it off where mirroring changes the class, as for digits.
    """

    epochs: Epochs | None = None
    batch_size: BatchSize = 32
    micro_batch_size: BatchSize | None = None
    optimizer: Optimizer = "muon"
    schedule: Schedule = "linear"
    learning_rate: LearningRate = 5e-2
    weight_decay: WeightDecay = 0.0
    crop_padding: Annotated[int, Interval(ge=0, le=64)] = 4
    rotation_degrees: Annotated[float, Interval(ge=0, le=180)] = 3.0
    horizontal_flip: bool = True


@dataclass(frozen=True, kw_only=True)
class CloningConfig(Config):
    """What cloning takes beside its temperature.

    The defaults are those of preset ``default``. Most named options are rows in which the paper and its authors'
    published code differ; the others are what ``default`` adds to both.

    Attributes:
        preset: Where the other fields come from; by itself it sets nothing, ``expand_preset`` does.
        cloning_weight: λ, the weight of the cloning loss beside cross-entropy.
        layers: What is cloned: kinds (``convolution``, ``normalization``, ``linear``), module names, ``authors``, or
            ``feature_maps``: all normalisations, or in a network without any all other layers.
        criteria: What weighs a neuron: ``both`` (Eq. 4), its ``activation`` (Eq. 2) or its ``impact`` (Eq. 3) alone.
        statistics: μ and σ ``per_channel`` over batch and position, with the authors' floor of σ near 1/√n; or
            ``per_neuron`` (channel and position), the population's.
        gradient: Of the ``batch_mean`` loss, so 1/B of each sample's own; or of each sample's own (``per_sample``).
        impact: The gradient enters Eq. 3 ``signed``; or by ``magnitude`` as Appendix C argues; or by its magnitude
            ``relative`` to the mean of the sample's neurons, so that what the loss is scaled by does not matter.
        normalize_importance: One sample's importance at one layer is made to sum to 1, so that λ means the same
            whatever τ is.
        compare: A layer whose output enters a ReLU is compared ``after_relu`` (and the gradient is read there), or at
            its own ``output``. The activation term is always of the output.
        corruption: Share of the images that the clone sees warped and with waves, and, of the others as well, with
            rectangles of noise; the suspect sees them as they are. So the clone is taught not to listen to patterns
            that clean images lack. Those with waves are compared at the last layer to run alone: the layers before it
            show what was done to pixels, whatever a clone learns.
        mixing: Share of the images of which, in pairs, the clone sees a part of the other instead, and is compared
            there with what the suspect says of that other. So it is taught to hear no more in two things than in each.
    """

    preset: Literal["default", "authors", "paper"] = "default"
    cloning_weight: Annotated[float, Gt(0), Le(1e6)] = 30.0
    layers: Annotated[tuple[Annotated[str, MaxLen(255)], ...], MaxLen(MOST_LAYERS)] = (FEATURE_LAYERS,)
    criteria: Literal["both", "activation", "impact"] = "both"
    statistics: Literal["per_channel", "per_neuron"] = "per_channel"
    gradient: Literal["batch_mean", "per_sample"] = "batch_mean"
    impact: Literal["signed", "magnitude", "relative"] = "relative"
    normalize_importance: bool = True
    compare: Literal["after_relu", "output"] = "after_relu"
    corruption: Annotated[float, Interval(ge=0, le=1)] = 0.5
    mixing: Annotated[float, Interval(ge=0, le=1)] = 0.3

    def __post_init__(self) -> None:
        """Refuse an empty choice of layers beside what every config refuses."""
        super().__post_init__()
        if not self.layers:
            raise InvalidConfigError("layers is empty: name kinds or modules to clone")


@dataclass(frozen=True, kw_only=True)
class MedicConfig(CloningConfig):
    """Importance-driven cloning (Xu et al., "MEDIC: Remove Model Backdoors via Importance Driven Cloning", CVPR 2023).

    Attributes:
        temperature: τ of Eq. 2 and 3; multiplies the logits of both softmaxes.
    """

    method: Literal["medic"] = "medic"
    temperature: Annotated[float, Gt(0), Le(1000)] = 0.5


@dataclass(frozen=True, kw_only=True)
class AutoConfig(CloningConfig):
    """Importance-driven cloning at the largest temperature that keeps a budget of accuracy, found by bisection.

    Accuracy is that on a fifth of the clean images, which do not train; test data and triggers choose nothing.

    Attributes:
        accuracy_budget: What the share of held-out images called right may fall by.
        runs: Temperatures to try, one training each.
        lowest_temperature: Lower end of what is bisected; not tried itself.
        highest_temperature: Upper end, not tried either.
    """

    method: Literal["auto"] = "auto"
    accuracy_budget: Annotated[float, Interval(ge=0, le=1)] = 0.03
    runs: Annotated[int, Interval(ge=1, le=8)] = 4
    lowest_temperature: Annotated[float, Gt(0), Le(1000)] = 0.125
    highest_temperature: Annotated[float, Gt(0), Le(1000)] = 8.0

    def __post_init__(self) -> None:
        """Refuse an empty interval of temperatures beside what every cloning refuses."""
        super().__post_init__()
        if self.lowest_temperature >= self.highest_temperature:
            raise InvalidConfigError(
                f"lowest_temperature = {self.lowest_temperature!r} must be below"
                f" highest_temperature = {self.highest_temperature!r}"
            )


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(Config):
    """Training from scratch on the clean images alone: the baseline that cloning has to beat."""

    method: Literal["scratch"] = "scratch"
    epochs: Epochs | None = 60


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Config):
    """What methods share that start from the suspect's weights.

    The defaults are what the authors of MEDIC fine-tune with for their tables, and NAD before them.
    """

    epochs: Epochs = 30
    batch_size: BatchSize = 64
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "steps"
    learning_rate: LearningRate = 0.1
    weight_decay: WeightDecay = 1e-4


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(TuningConfig):
    """Fine-tuning of all weights on the clean images: the least that any repair does."""

    method: Literal["fine_tune"] = "fine_tune"


@dataclass(frozen=True, kw_only=True)
class FinePruneConfig(TuningConfig):
    """Pruning of what clean images leave dormant, then fine-tuning (Liu et al., "Fine-Pruning", RAID 2018).

    Channels of the last feature map are cut in the order of their mean activation for as long as accuracy on the
    clean images allows, and stay cut.

    Attributes:
        accuracy_tolerance: What pruning may cost, as a share of the clean images.
    """

    method: Literal["fine_prune"] = "fine_prune"
    accuracy_tolerance: Annotated[float, Interval(ge=0, le=1)] = 0.04


@dataclass(frozen=True, kw_only=True)
class AttentionDistillationConfig(TuningConfig):
    """Neural attention distillation (Li et al., "NAD", ICLR 2021).

    A teacher is fine-tuned from the suspect; the suspect then learns the clean images and, at the ends of its stages,
    to attend where the teacher does.

    Attributes:
        epochs: Of distillation, after the teacher's.
        teacher_epochs: Of fine-tuning the teacher.
        attention_weight: β, of the distance between attention maps at the last two resolutions; half of it counts at
            the one before them.
    """

    method: Literal["attention_distillation"] = "attention_distillation"
    teacher_epochs: Epochs = 10
    attention_weight: Annotated[float, Interval(ge=0, le=1e6)] = 1000.0


@dataclass(frozen=True, kw_only=True)
class ModeConnectivityConfig(TuningConfig):
    """Mode connectivity repair (Zhao et al., "MCR", ICLR 2020).

    A fine-tuned copy of the suspect is joined to it by a curve in the space of weights, bent so that all models on it
    are right about the clean images; one from the inside of the curve is the repaired model.

    Attributes:
        epochs: Of bending the curve, after the endpoint's.
        endpoint_epochs: Of fine-tuning the copy, at the rates of ``fine_tune``.
        curve_position: Where on the curve the model is taken: 0 is the fine-tuned copy, 1 the suspect.
    """

    method: Literal["mode_connectivity"] = "mode_connectivity"
    endpoint_epochs: Epochs = 40
    epochs: Epochs = 200
    batch_size: BatchSize = 128
    schedule: Schedule = "cosine"
    learning_rate: LearningRate = 1e-2
    curve_position: Annotated[float, Interval(ge=0, le=1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class AdversarialPruningConfig(TuningConfig):
    """Adversarial neuron pruning (Wu and Wang, "ANP", NeurIPS 2021).

    A mask on every channel of every batch normalisation learns to keep the clean images right while an adversary
    disturbs the channels; what it lets go is cut. No other weight changes.

    Attributes:
        epochs: Of learning the masks; 100 make the published 2,000 steps on 2,500 images.
        perturbation: ε, how far the adversary may scale a channel, as a share of its weight or bias.
        clean_weight: α, of the loss without the adversary; the rest is that of the loss with it.
        threshold: Channels whose mask is at most this are cut.
    """

    method: Literal["adversarial_pruning"] = "adversarial_pruning"
    epochs: Epochs = 100
    batch_size: BatchSize = 128
    schedule: Schedule = "constant"
    learning_rate: LearningRate = 0.2
    weight_decay: WeightDecay = 0.0
    perturbation: Annotated[float, Interval(ge=0, le=1)] = 0.4
    clean_weight: Annotated[float, Interval(ge=0, le=1)] = 0.2
    threshold: Annotated[float, Interval(ge=0, le=1)] = 0.2


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Distillation of the suspect's answers to clean images into a fresh network (Hinton et al., 2015).

    Attributes:
        temperature: T, divides the logits of both.
        distillation_weight: Of the suspect's answers; the rest is that of the labels.
    """

    method: Literal["distill"] = "distill"
    epochs: Epochs = 60
    temperature: Annotated[float, Gt(0), Le(1000)] = 4.0
    distillation_weight: Annotated[float, Interval(ge=0, le=1)] = 0.9


@dataclass(frozen=True, kw_only=True)
class HeadShiftConfig(TuningConfig):
    """Feature shift tuning (Min et al., "FST", NeurIPS 2023).

    The last linear layer starts anew, and all weights are tuned while its own are pushed away from what they were, at
    the norm that they had.

    Attributes:
        shift_weight: α, of the inner product of the head's weights with the suspect's.
    """

    method: Literal["head_shift"] = "head_shift"
    epochs: Epochs = 10
    batch_size: BatchSize = 128
    schedule: Schedule = "cosine"
    learning_rate: LearningRate = 1e-2
    weight_decay: WeightDecay = 0.0
    shift_weight: Annotated[float, Interval(ge=0, le=1000)] = 0.2


@dataclass(frozen=True, kw_only=True)
class SharedAdversarialConfig(TuningConfig):
    """Shared adversarial unlearning (Wei et al., "SAU", NeurIPS 2023).

    Each batch is disturbed so that suspect and repaired model are both wrong, and in the same way; the repaired model
    then learns not to say what the suspect says.

    Attributes:
        perturbation: ε, by how much a pixel may change, of a range of 1.
        attack_steps: Of projected gradient ascent, each of the size of ``perturbation``.
        clean_weight: λ1, of cross-entropy on the clean images.
        unlearning_weight: λ2, of what is shared.
        adversarial_weight: λ3, in the attack, of both models being wrong.
        sharing_weight: λ4, in the attack, of both saying the same.
    """

    method: Literal["shared_adversarial"] = "shared_adversarial"
    epochs: Epochs = 100
    batch_size: BatchSize = 256
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"
    learning_rate: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.0
    perturbation: Annotated[float, Gt(0), Le(1)] = 0.2
    attack_steps: Annotated[int, Interval(ge=1, le=1000)] = 5
    clean_weight: Annotated[float, Interval(ge=0, le=1000)] = 1.0
    unlearning_weight: Annotated[float, Interval(ge=0, le=1000)] = 1.0
    adversarial_weight: Annotated[float, Interval(ge=0, le=1000)] = 0.01
    sharing_weight: Annotated[float, Interval(ge=0, le=1000)] = 1.0


@dataclass(frozen=True, kw_only=True)
class LipschitzPruningConfig(Seeded):
    """Channel Lipschitzness based pruning (Zheng et al., "CLP", ECCV 2022), which takes neither images nor training.

    Channels of a convolution that can change far more than the others of their layer are cut.

    Attributes:
        deviations: u, how many standard deviations above its layer's mean a channel's Lipschitz bound may be.
    """

    method: Literal["lipschitz_pruning"] = "lipschitz_pruning"
    deviations: Annotated[float, Interval(ge=0, le=1000)] = 3.0


RemovalConfig = (
    MedicConfig
    | AutoConfig
    | ScratchConfig
    | FineTuneConfig
    | FinePruneConfig
    | AttentionDistillationConfig
    | ModeConnectivityConfig
    | AdversarialPruningConfig
    | DistillConfig
    | HeadShiftConfig
    | SharedAdversarialConfig
    | LipschitzPruningConfig
)

_AUTHORS: Mapping[str, Any] = MappingProxyType(
    {
        "epochs": 60,
        "batch_size": 64,
        "optimizer": "adam",
        "schedule": "cosine",
        "learning_rate": 1e-2,
        "weight_decay": 1e-4,
        "crop_padding": 4,
        "rotation_degrees": 3.0,
        "horizontal_flip": True,
        "temperature": 5.0,
        "cloning_weight": 10.0,
        "layers": (AUTHORS_LAYERS,),
        "criteria": "both",
        "statistics": "per_channel",
        "gradient": "batch_mean",
        "impact": "signed",
        "normalize_importance": False,
        "compare": "after_relu",
        "corruption": 0.0,
        "mixing": 0.0,
    }
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "authors": _AUTHORS,
        "paper": MappingProxyType(
            {
                **_AUTHORS,
                "layers": LAYER_KINDS,
                "statistics": "per_neuron",
                "gradient": "per_sample",
                "impact": "magnitude",
                "compare": "output",
            }
        ),
        "default": MappingProxyType({name: getattr(MedicConfig(), name) for name in _AUTHORS}),
    }
)
"""What each preset of ``MedicConfig`` sets, and but for τ of ``AutoConfig``. ``expand_preset`` merges one with what the
caller set."""


_E7_ARCHITECTURES = re.compile(r"[a-z]+/(preact_)?(vgg|mobilenet|resnet)")
E7_LEARNING_RATE = 1e-3


def expand_preset(chosen: Mapping[str, Any], *, architecture: str = "") -> dict[str, Any]:
    """Fill in what a preset sets; explicit fields win over it.

    Note:
        The paper trains VGG, MobileNet and ResNet at a tenth of its learning rate (Appendix E.7), so preset ``paper``
        does; the authors' code has one rate for all.

    Args:
        chosen: Fields of a removal config as the caller gave them, ``method`` and ``preset`` among them or not.
        architecture: What is to be repaired, by name.

    Returns:
        A dictionary with ``method`` and, for ``medic`` and ``auto``, every field that the preset sets. An unknown
        preset or method is left as it is for validation to name.
    """
    method = chosen.get("method", "medic")
    name = chosen.get("preset", "default")
    preset = dict(PRESETS.get(name, {})) if method in ("medic", "auto") and isinstance(name, str) else {}
    if method == "auto":
        preset.pop("temperature", None)  # which it looks for
    if preset and name == "paper" and _E7_ARCHITECTURES.match(architecture):
        preset["learning_rate"] = E7_LEARNING_RATE
    return {"method": method, **preset, **chosen}
