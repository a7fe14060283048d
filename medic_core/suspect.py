"""The model under suspicion, with the constructor that it came from."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from medic_core.architectures import Architecture


@dataclass(frozen=True)
class Suspect:
    """A model that may carry a backdoor.

    Attributes:
        model: Never changed by a removal.
        architecture: Builds an untrained model of the same shape. Clones come from it, never from a copy of ``model``
            with its modules reset: class tokens, bias tables and layer scales have no reset and would be carried over.
    """

    model: nn.Module
    architecture: Architecture

    def frozen(self, device: torch.device | None = None) -> nn.Module:
        """Return a copy of ``model`` in eval mode whose parameters need no gradient; on ``device``, if there is one."""
        copied = copy.deepcopy(self.model).eval().requires_grad_(requires_grad=False)
        return copied if device is None else _moved(copied, device)

    def trainable(self, device: torch.device) -> nn.Module:
        """Return a copy of ``model`` on ``device``, all of whose parameters take gradients."""
        return _moved(copy.deepcopy(self.model).requires_grad_(), device)


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device).to(memory_format=torch.channels_last)  # the faster one on CPU and GPU
