"""What the core refuses to do, and why. One root; every kind has a stable ``code`` that is stored with a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MedicError(Exception):
    """Root of all expected failures. ``problems`` holds every reason, not the first one."""

    code: ClassVar[str] = "medic_error"

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems: Sequence[str] = problems


class UnknownArchitectureError(MedicError):
    """No architecture of that name, or it takes no such option."""

    code = "unknown_architecture"


class UnsupportedArchitectureError(MedicError):
    """The architecture is known but cannot be repaired; the message says why."""

    code = "unsupported_architecture"


class LayerNotFoundError(MedicError):
    """A chosen layer does not exist, a chosen kind matches none, or an output was never seen in a forward pass."""

    code = "layer_not_found"


class NonFiniteLossError(MedicError):
    """The loss became NaN or infinite while training."""

    code = "nan_loss"


class WeightRangeError(MedicError):
    """A repaired weight is too large for the precision in which the model was given."""

    code = "weights_out_of_range"


class DataTooSmallError(MedicError):
    """There are too few images to estimate statistics and to train."""

    code = "data_too_small"


class AttackOptionError(MedicError):
    """An attack lacks what it needs, or is given what it does not take; for evaluation only."""

    code = "attack_option"
