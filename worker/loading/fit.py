"""Whether the tensors are those of the architecture that was named; and which architectures they would fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from jobs.models import ModelSpec
from medic_core.architectures import (
    ShapeComparison,
    compare_shapes,
    find_architecture,
    num_classes_of,
    suggest_architectures,
)
from medic_core.architectures.fitting import without_memory
from medic_core.errors import MedicError
from worker.loading.refusal import RefusedError, listed, refused
from worker.loading.weights import Weights

_POINTER = "/model/architecture"
_ANY_CLASSES = 10


def check_fit(weights: Weights, spec: ModelSpec) -> int:
    """Compare names, shapes and kinds of the tensors with what the architecture's constructor makes.

    Returns:
        The number of the model's outputs.

    Raises:
        RefusedError: ``unknown_architecture``, ``unsupported_architecture``, or ``architecture_mismatch`` with all
            differences.
    """
    try:
        outputs = num_classes_of(spec.architecture, spec.options, weights.shapes())
        assumed = outputs or len(spec.class_names or ()) or _ANY_CLASSES
        architecture = find_architecture(spec.architecture, num_classes=assumed, options=spec.options)
    except MedicError as error:
        fitting = suggestions(weights)
        advice = f" What fits these tensors: {', '.join(fitting)}." if fitting else ""
        raise refused(error.code, f"{error}.{advice}", pointer=_POINTER) from error
    with without_memory():
        expected = architecture.build().state_dict()
    comparison = compare_shapes({name: tuple(tensor.shape) for name, tensor in expected.items()}, weights.shapes())
    if outputs is None or not comparison.fits:
        raise _mismatch(weights, spec, comparison)
    _check_kinds(expected, weights.tensors)
    return outputs


def suggestions(weights: Weights) -> tuple[str, ...]:
    """Names of the architectures that have exactly these tensors."""
    return suggest_architectures(weights.shapes())


def _mismatch(weights: Weights, spec: ModelSpec, comparison: ShapeComparison) -> RefusedError:
    mismatched = [f"{name}: expected {want}, given {have}" for name, want, have in comparison.mismatched]
    fitting = suggestions(weights)
    advice = (
        f"What fits: {', '.join(fitting)}." if fitting else "No architecture that is known here fits by its defaults."
    )
    return refused(
        "architecture_mismatch",
        f"The tensors are not those of {spec.architecture}. {_differences('missing', comparison.missing)}"
        f"{_differences('unexpected', comparison.unexpected)}{_differences('of another shape', mismatched)}{advice}",
        pointer=_POINTER,
    )


def _differences(kind: str, names: Sequence[str]) -> str:
    return f"{len(names)} {kind}: {listed(names)}. " if names else ""


def _check_kinds(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Any floating dtype stands for any other, but no integer for one: it could not hold what training makes."""
    odd = [
        f"{name}: {given[name].dtype}"
        for name in expected
        if expected[name].is_floating_point() != given[name].is_floating_point()
    ]
    if odd:
        raise refused(
            "architecture_mismatch",
            f"{len(odd)} tensors are integers where the architecture has floating-point ones, or the reverse: "
            f"{listed(odd)}. Send the weights before quantization.",
            pointer=_POINTER,
        )
