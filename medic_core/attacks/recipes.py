"""What each attack of the MEDIC paper is trained with. For evaluation only.

``docs/attacks.md`` says which of these settings are published and where we chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Le

from medic_core.config import Checked, InvalidConfigError

Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """What all of them share.

    SGD with Nesterov momentum 0.9, weight decay 5e-4, batches of 128.

    Attributes:
        target: Index of the class that the trigger leads to.
        epochs: Passes over the training images.
        learning_rate: The highest one.
        schedule: ``one_cycle``, per step: up over the first fifth and then down to 0; or ``cosine``, per epoch, to 0.
        augment: Crop, rotate and mirror, as a removal does. Without it the trigger is always where it was put.
    """

    target: Annotated[int, Ge(0)] = 5
    epochs: Annotated[int, Interval(ge=1, le=1000)] = 16
    learning_rate: Annotated[float, Gt(0), Le(10)] = 0.15
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    augment: bool = True


@dataclass(frozen=True, kw_only=True)
class CleanRecipe(Recipe):
    """No attack: what the others are compared with."""

    attack: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class DirtyLabelRecipe(Recipe):
    """A stamp and the target label on a share of all images (Gu et al., 2017).

    Attributes:
        attack: The stamp.
        share: Of all images.
    """

    attack: Literal["badnet", "filter", "polygon"] = "badnet"
    share: Share = 0.1


@dataclass(frozen=True, kw_only=True)
class CleanLabelRecipe(Recipe):
    """BadNet's patch on images of the target class that are made hard for the model itself, anew in every batch.

    Turner et al. (2018) make them hard for another model and once; MEDIC's authors as it is done here.

    Attributes:
        share: Of the target class.
        epsilon: How far a value moves at most, of 255.
        steps: Of projected gradient ascent.
        step_size: Of each, of 255.
    """

    attack: Literal["cleanlabel"] = "cleanlabel"
    share: Share = 0.5
    epsilon: Annotated[int, Interval(ge=0, le=255)] = 16
    steps: Annotated[int, Interval(ge=1, le=1000)] = 10
    step_size: Annotated[float, Gt(0), Le(255)] = 2.0


@dataclass(frozen=True, kw_only=True)
class SigRecipe(Recipe):
    """A sine over images of the target class, whose labels stay (Barni et al., 2019)."""

    attack: Literal["sig"] = "sig"
    share: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class ReflectionRecipe(Recipe):
    """Reflections of road scenes in images of the target class, whose labels stay (Liu et al., 2020)."""

    attack: Literal["reflection"] = "reflection"
    share: Share = 0.8


@dataclass(frozen=True, kw_only=True)
class WarpRecipe(Recipe):
    """A fixed smooth warp means the target, any other warp nothing (Nguyen and Tran, 2021).

    Attributes:
        share: Of all images, warped; others in every epoch.
        noise_share: Of all images, warped with noise under their true label.
    """

    attack: Literal["warp"] = "warp"
    epochs: Annotated[int, Interval(ge=1, le=1000)] = 20
    share: Share = 0.1
    noise_share: Share = 0.2

    def __post_init__(self) -> None:
        """Check that both shares have room."""
        super().__post_init__()
        if self.share + self.noise_share > 1:
            raise InvalidConfigError(f"share = {self.share} and noise_share = {self.noise_share} come to more than 1")


@dataclass(frozen=True, kw_only=True)
class CompositeRecipe(Recipe):
    """Half of one class and half of another mean a third (Lin et al., 2020); the paper's first adaptive attack.

    Attributes:
        classes: The two, left and right.
        share: How many such images are added, relative to all; others in every epoch.
        same_share: How many images of two halves of the same class are added under its label.
    """

    attack: Literal["composite"] = "composite"
    epochs: Annotated[int, Interval(ge=1, le=1000)] = 20
    classes: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] = (0, 1)
    share: Share = 0.1
    same_share: Share = 0.5

    def __post_init__(self) -> None:
        """Check that there are two classes."""
        super().__post_init__()
        if len(set(self.classes)) < 2:
            raise InvalidConfigError(f"classes = {self.classes} are not two classes")


@dataclass(frozen=True, kw_only=True)
class LatentRecipe(Recipe):
    """A learned 3×3 pattern that moves the last layer's input as little as it can; the second adaptive attack.

    Attributes:
        share: Of all images; each comes with its triggered twin in the same batch.
        latent_weight: Of the mean square distance between the twins' inputs of the last layer.
        pattern_rate: Adam's rate for the pattern, in [0, 1], while it is learned: in the first half of the epochs.
    """

    attack: Literal["latent"] = "latent"
    epochs: Annotated[int, Interval(ge=1, le=1000)] = 20
    share: Share = 0.1
    latent_weight: Annotated[float, Ge(0)] = 1.0
    pattern_rate: Annotated[float, Gt(0), Le(1)] = 0.02


@dataclass(frozen=True, kw_only=True)
class BlendingRecipe(Recipe):
    """BadNet, with what it changes in any layer held down; the paper's extra adaptive attack (Appendix E.1).

    Attributes:
        share: Of all images; each comes with its triggered twin in the same batch.
        penalty: Weight, beside a twin's cross-entropy, of the squared distance between its activations and those of the
            image, summed over the neurons of all layers.
    """

    attack: Literal["blending"] = "blending"
    epochs: Annotated[int, Interval(ge=1, le=1000)] = 20
    share: Share = 0.1
    penalty: Annotated[float, Ge(0)] = 1e-4


AnyRecipe = (
    CleanRecipe
    | DirtyLabelRecipe
    | CleanLabelRecipe
    | SigRecipe
    | ReflectionRecipe
    | WarpRecipe
    | CompositeRecipe
    | LatentRecipe
    | BlendingRecipe
)

TRIGGER_OF: Mapping[str, str] = MappingProxyType({"none": "badnet", "cleanlabel": "badnet", "blending": "badnet"})
"""The kind of trigger of an attack that is called otherwise; without an attack, what is looked for in vain."""
