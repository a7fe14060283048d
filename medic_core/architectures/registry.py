"""Look-up of architectures by name, and building them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import nn

from medic_core.architectures.recipes import Option, Recipe, recipe_for
from medic_core.errors import UnknownArchitectureError


@dataclass(frozen=True)
class Architecture:
    """A constructor with its arguments; ``find_architecture`` makes one and checks it.

    Attributes:
        name: With its origin, such as ``medic/resnet20`` or ``torchvision/resnet18``.
        num_classes: Number of logits.
        options: Further constructor arguments.
    """

    name: str
    num_classes: int
    options: Mapping[str, Option] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Return an untrained model, drawn from the global random state: who needs it repeatable seeds that."""
        return recipe_for(self.name).construct(num_classes=self.num_classes, **self.options)


def find_architecture(
    name: str, *, num_classes: int, options: Mapping[str, Option] = MappingProxyType({})
) -> Architecture:
    """Find an architecture and check what it is asked for; nothing is built.

    Raises:
        UnknownArchitectureError: No such name, option or value; lists every problem, names what is close or allowed.
        UnsupportedArchitectureError: The architecture is known but cannot be repaired; says why.
    """
    recipe = recipe_for(name)
    problems = [problem for option, value in options.items() if (problem := _problem_with(option, value, name, recipe))]
    if problems:
        raise UnknownArchitectureError(*problems)
    return Architecture(name, num_classes, MappingProxyType(dict(options)))


def _problem_with(option: str, value: Option, name: str, recipe: Recipe) -> str | None:
    if option not in recipe.options:
        allowed = f"its options are {', '.join(recipe.options)}" if recipe.options else "it takes no options"
        return f"{name} has no option {option!r}; {allowed}"
    if option == "dropout" and not (isinstance(value, int | float) and 0 <= value < 1):
        return f"dropout of {name} is a number from 0 to below 1, not {value!r}"
    if option == "image_size" and not (isinstance(value, int) and _is_side(value, recipe.image_multiple)):
        return f"image_size of {name} is a multiple of {recipe.image_multiple} from 8 to 1024, not {value!r}"
    return None


def _is_side(pixels: int, multiple: int) -> bool:
    return 8 <= pixels <= 1024 and pixels % multiple == 0
