"""Channel Lipschitzness based pruning (Zheng et al., ECCV 2022): channels that can change too much are cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medic_core.config import LipschitzPruningConfig
from medic_core.data import Batches
from medic_core.errors import UnsupportedArchitectureError
from medic_core.folding import normalized_convolutions
from medic_core.removal.training import Progress, ProgressCallback, silent
from medic_core.suspect import Suspect


@torch.no_grad()
def prune_by_lipschitz(
    suspect: Suspect, clean: Batches, config: LipschitzPruningConfig, *, progress: ProgressCallback = silent
) -> nn.Module:
    """Cut every channel whose Lipschitz bound is too far above those of its layer.

    Of ``clean`` only the device and the size of the images are used.

    Raises:
        UnsupportedArchitectureError: No convolution's output goes into a batch normalisation alone.
    """
    progress(Progress(0, 1, ()))
    model = suspect.trainable(clean.images.device).eval()
    blank = torch.zeros_like(next(clean.in_order(batch_size=2))[0])
    pairs = _pairs(model, blank)
    if not pairs:
        raise UnsupportedArchitectureError(
            "lipschitz_pruning judges convolutions by the batch normalisation that alone takes their output, and this"
            " architecture has no such pair: use fine_tune or medic instead"
        )
    for convolution, normalization in pairs:
        bounds = lipschitz_bounds(convolution, normalization)
        cut = bounds > bounds.mean() + config.deviations * bounds.std()
        normalization.weight.masked_fill_(cut, 0)
        normalization.bias.masked_fill_(cut, 0)
    progress(Progress(1, 1, ()))
    return model


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    found = [map(model.get_submodule, pair) for pair in normalized_convolutions(model, images)]
    return [
        (convolution, normalization)
        for convolution, normalization in found
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d) and normalization.affine
    ]


def lipschitz_bounds(convolution: nn.Conv2d, normalization: nn.BatchNorm2d) -> Tensor:
    """Bound how far each channel, normalised, can move for a change of its input of length 1.

    The largest singular value of its kernel as a matrix of input channels by positions, times what normalisation
    scales it by: ``|γ| / sqrt(σ² + ε)``.

    Returns:
        ``(channels,)``.
    """
    assert normalization.running_var is not None  # noqa: S101 - a pair tracks its statistics
    scales = normalization.weight.abs() / (normalization.running_var + normalization.eps).sqrt()
    bounds: Tensor = torch.linalg.matrix_norm(convolution.weight.flatten(2), ord=2) * scales
    return bounds
