"""Fold batch normalisations into the convolutions before them: a frozen model does not need the two apart."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_normalizations(model: nn.Module, images: Tensor, *, keep: Collection[str] = ()) -> nn.Module:
    """Fold every batch normalisation that alone takes a convolution's output into that convolution, in a copy.

    An identity takes its place, with the same name and the same output.

    Args:
        model: In eval mode, parameters frozen.
        images: A small batch, as the model takes it.
        keep: Modules whose output is still asked for, by name.

    Returns:
        A model that answers as ``model`` does, but for rounding; that itself, where a folded one would not.
    """
    folded = copy.deepcopy(model)
    for first, second in normalized_convolutions(model, images, keep=keep):
        convolution, normalization = folded.get_submodule(first), folded.get_submodule(second)
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):  # which they are
            folded.set_submodule(first, fuse_conv_bn_eval(convolution, normalization))
            folded.set_submodule(second, nn.Identity())
    with torch.no_grad():  # a use that leaves no trace in the graph, such as of a detached output, shows here
        before, after = model(images), folded(images)
    return folded if (after - before).abs().max() <= 1e-3 * before.abs().max() else model


def normalized_convolutions(model: nn.Module, images: Tensor, *, keep: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the batch normalisations that alone take their output; each runs once.

    Args:
        model: In eval mode.
        images: A small batch, as the model takes it.
        keep: Modules whose output is asked for beside, by name.
    """
    made: dict[int, tuple[str, Tensor, int]] = {}  # the tensors are kept, so their ids stay their own
    taken: list[tuple[str, str, Tensor]] = []
    kept: set[int] = set()
    runs: Counter[str] = Counter()

    def note(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        runs[name] += 1
        if type(module) is nn.BatchNorm2d and module.track_running_stats and given and id(given[0]) in made:
            convolution, tensor, version = made[id(given[0])]
            if tensor._version == version:  # nothing has rewritten it in place
                taken.append((convolution, name, tensor))
        elif name in keep:
            kept.add(id(output))
        elif type(module) is nn.Conv2d:
            made[id(output)] = (name, output, output._version)

    with ExitStack() as stack, torch.enable_grad():
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda m, given, output, name=name: note(name, m, given, output))
            stack.callback(hook.remove)
        uses = _uses(model(images.detach().requires_grad_()))
    return [
        (one, other)
        for one, other, tensor in taken
        if runs[one] == runs[other] == uses[tensor.grad_fn] == 1 and id(tensor) not in kept
    ]


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
