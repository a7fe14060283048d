"""Fold batch normalisations into the convolutions before them: a frozen model does not need the two apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_normalizations(model: nn.Module, images: Tensor, *, keep: Collection[str] = ()) -> None:
    """Fold every batch normalisation that alone takes a convolution's output into that convolution, in place.

    An identity takes its place, with the same name and the same output.

    Args:
        model: In eval mode, parameters frozen; it answers as before, but for rounding.
        images: A small batch, as the model takes it.
        keep: Convolutions whose own output is still asked for, by name.
    """
    modules = dict(model.named_modules())
    for first, second in _pairs(modules, model, images, keep):
        convolution, normalization = modules[first], modules[second]
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):  # which they are
            model.set_submodule(first, fuse_conv_bn_eval(convolution, normalization))
            model.set_submodule(second, nn.Identity())


def _pairs(
    modules: dict[str, nn.Module], model: nn.Module, images: Tensor, keep: Collection[str]
) -> list[tuple[str, str]]:
    """Names of convolutions and of the normalisations that alone take their output; each runs once."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so their ids stay their own
    taken: list[tuple[str, str, Any]] = []
    runs: Counter[str] = Counter()

    def note(name: str, given: Tensor, output: Tensor) -> None:
        runs[name] += 1
        if isinstance(modules[name], nn.Conv2d):
            made[id(output)] = (name, output)
        elif id(given) in made:
            taken.append((made[id(given)][0], name, given.grad_fn))

    with ExitStack() as stack, torch.enable_grad():
        for name, module in modules.items():
            frozen = type(module) is nn.BatchNorm2d and module.track_running_stats
            if frozen or (type(module) is nn.Conv2d and name not in keep):
                hook = module.register_forward_hook(lambda _m, given, output, name=name: note(name, given[0], output))
                stack.callback(hook.remove)
        uses = _uses(model(images.detach().requires_grad_()))
    return [(one, other) for one, other, maker in taken if runs[one] == runs[other] == uses[maker] == 1]


def _uses(answer: Tensor) -> Counter[Any]:
    """How often what each node of the graph behind ``answer`` has made is used in it."""
    uses: Counter[Any] = Counter()
    waiting: list[Any] = [answer.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            uses[node] += 1
            if node is not None and uses[node] == 1:
                waiting.append(node)
    return uses
