"""Look inside a model while it runs: which layers there are, what they put out, and the statistics of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.convnext import LayerNorm2d

from medic_core.config import AUTHORS_LAYERS, FEATURE_LAYERS, LAYER_KINDS
from medic_core.errors import LayerNotFoundError

KINDS: Mapping[str, tuple[type[nn.Module], ...]] = dict(
    zip(
        LAYER_KINDS,
        (
            (nn.modules.conv._ConvNd,),
            (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm),
            (nn.Linear,),
        ),
        strict=True,
    )
)
CHOICES = (*LAYER_KINDS, AUTHORS_LAYERS, FEATURE_LAYERS)
_RELU = frozenset({F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})


@dataclass
class Recorded:
    """One layer's output in one forward pass.

    Attributes:
        output: As the layer returned it, ``(batch, *neurons)``.
        rectified: What a ReLU made of it, if the output went straight into one; else None.
        version: Of ``output``, by which it is seen whether something rewrote it.
    """

    output: Tensor
    rectified: Tensor | None = None
    version: int = 0


@dataclass(frozen=True)
class Layers:
    """Layers to record, in the order of the model's modules.

    Attributes:
        names: Of the modules.
        rewritten: Those whose output an in-place operation downstream rewrites, so that a copy must go on instead.
        last: The one that is the last to run.
    """

    names: tuple[str, ...]
    rewritten: frozenset[str]
    last: str

    def last_alone(self) -> Layers:
        """Return what records the last layer and nothing else."""
        return Layers((self.last,), self.rewritten & {self.last}, self.last)


@contextmanager
def record_outputs(
    model: nn.Module, layers: Layers, *, forget_rectified: bool = False
) -> Iterator[dict[str, Recorded]]:
    """Record what ``layers`` put out during the one forward pass that the body of this context makes.

    Where an in-place operation downstream would rewrite a record the model goes on with a copy, through which
    gradients flow.

    Args:
        model: Run once, in the body.
        layers: What to record.
        forget_rectified: Of an output that goes into a ReLU keep only what the ReLU made of it, as ``output`` too, so
            that its memory goes as soon as the model needs it no longer.

    Yields:
        Recorded outputs by layer name, filled in while the model runs.

    Raises:
        LayerNotFoundError: A layer does not exist, its output was not seen exactly once, or was rewritten.
    """
    modules = dict(model.named_modules())
    if unknown := [name for name in layers.names if name not in modules]:
        raise LayerNotFoundError(*(f"the model has no layer {name!r}" for name in unknown))
    records: dict[str, Recorded] = {}
    handed_on = _RectifiedWatch(forget=forget_rectified)
    problems: list[str] = []

    def keep(name: str, output: Any) -> Any:
        if name in records:
            problems.append(f"layer {name!r} ran more than once in a forward pass")
        if not isinstance(output, Tensor):
            problems.append(f"layer {name!r} returned {type(output).__name__}, not a tensor")
            return output
        records[name] = Recorded(output, version=output._version)
        return handed_on.watch(output.clone() if name in layers.rewritten else output, records[name])

    with ExitStack() as stack:
        for name in layers.names:
            hook = modules[name].register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
            stack.callback(hook.remove)
        stack.enter_context(handed_on)
        yield records
    problems += [f"the output of layer {name!r} was never seen" for name in layers.names if name not in records]
    problems += [
        f"{name!r} was rewritten in place"
        for name, record in records.items()
        if record.output._version != record.version
    ]
    if problems:
        raise LayerNotFoundError(*problems)


class _RectifiedWatch(TorchFunctionMode):
    """Notices when a recorded output goes straight into a ReLU, module or function."""

    def __init__(self, *, forget: bool) -> None:
        super().__init__()
        self._forget = forget
        self._watched: dict[int, tuple[Tensor, Recorded]] = {}

    def watch(self, tensor: Tensor, record: Recorded) -> Tensor:
        self._watched[id(tensor)] = (tensor, record)  # the tensor is kept, so its id stays its own
        return tensor

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _RELU and args and id(args[0]) in self._watched:
            record = self._watched[id(args[0])][1]
            record.rectified = result
            if self._forget:
                record.output, record.version = result, result._version
                del self._watched[id(args[0])]
        return result


def is_map(output: torch.Size, images: torch.Size) -> bool:
    """Whether an output is a picture of the image: ``(b, channels, rows, columns)``, more than one position.

    Both axes have shrunk alike, which they have not where channels come last, unless these are as many as columns: of
    such a layer ``channel_axis`` knows.

    Args:
        output: Shape of the output.
        images: Shape of what the model was given.
    """
    if len(output) != 4 or output[2] * output[3] == 1:
        return False
    shrunk = [after / before for after, before in zip(output[2:], images[2:], strict=True)]
    return max(shrunk) <= 1 and max(shrunk) - min(shrunk) <= 1 / min(images[2:])


def select_layers(model: nn.Module, chosen: Sequence[str], *, authors: Sequence[str], images: Tensor) -> Layers:
    """Resolve kinds and names to the layers of ``model``, in the order of its modules.

    A kind stands for those layers of its kind that look at the image: some, inside attention, are only parameter
    holders whose ``forward`` is never called, or compute position biases. A name must run.

    Args:
        model: In eval mode, parameters frozen.
        chosen: Kinds (``LAYER_KINDS``), ``authors``, ``feature_maps``, or module names.
        authors: What ``authors`` stands for.
        images: A small batch for one forward pass, as the model takes it.

    Raises:
        LayerNotFoundError: Listing every name that does not exist, does not run once or does not look at the image; or
            nothing is left to record.
    """
    running = _running_layers(model, images)
    known = dict(model.named_modules())
    picked: set[str] = set()
    problems: list[str] = []
    for choice in chosen:
        if choice == AUTHORS_LAYERS:
            picked.update(name for name in authors if name in running)
        elif choice == FEATURE_LAYERS:
            norms = {name for name in running if isinstance(known[name], KINDS["normalization"])}
            picked.update(norms or running)
        elif choice in KINDS:
            picked.update(name for name in running if isinstance(known[name], KINDS[choice]))
        elif choice in known:
            picked.add(choice)
        else:
            problems.append(f"no layer and no kind is called {choice!r}; kinds are {', '.join(CHOICES)}")
    if not picked:
        problems.append(f"no layer of {', '.join(chosen)} runs in this model")
    if problems:
        raise LayerNotFoundError(*problems)
    ordered = tuple(name for name in known if name in picked)
    everything = Layers(ordered, frozenset(ordered), last=ordered[-1])
    with torch.enable_grad(), record_outputs(model, everything) as records:  # says which do not run once
        model(images.detach().requires_grad_())
    if blind := [name for name, record in records.items() if not record.output.requires_grad]:
        raise LayerNotFoundError(*(f"what layer {name!r} puts out does not depend on the image" for name in blind))
    return Layers(ordered, _rewritten(model, ordered, images), last=list(records)[-1])


def _rewritten(model: nn.Module, names: Sequence[str], images: Tensor) -> frozenset[str]:
    outputs: dict[str, tuple[Tensor, int]] = {}
    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(
                lambda _m, _i, output, name=name: outputs.update({name: (output, output._version)})
            )
            stack.callback(hook.remove)
        with torch.no_grad():
            model(images)
    return frozenset(name for name, (output, version) in outputs.items() if output._version != version)


def _running_layers(model: nn.Module, images: Tensor) -> set[str]:
    """Names of the layers whose output depends on the images."""
    kinds = tuple(kind for group in KINDS.values() for kind in group)
    seen: set[str] = set()

    def note(name: str, output: Tensor) -> None:
        if output.requires_grad:
            seen.add(name)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                hook = module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
                stack.callback(hook.remove)
        with torch.enable_grad():
            model(images.detach().requires_grad_())
    return seen


@dataclass(frozen=True)
class Call:
    """One run of a module in a forward pass: what it took first, and what it returned; None where that is no tensor."""

    name: str
    module: nn.Module
    given: Tensor | None
    output: Tensor | None


def calls_of(model: nn.Module, images: Tensor) -> list[Call]:
    """Run ``model`` once, without gradients, and list what ran, the parts of a module before the module itself.

    Args:
        model: In eval mode. It is the last of the list, by the name ``""``.
        images: A small batch, as the model takes it.
    """
    calls: list[Call] = []

    def note(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        first, second = (tensor if isinstance(tensor, Tensor) else None for tensor in ((*given, None)[0], output))
        calls.append(Call(name, module, first, second))

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda m, given, output, name=name: note(name, m, given, output))
            stack.callback(hook.remove)
        model(images)
    return calls


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of one layer's output, shaped to broadcast against ``(batch, *neurons)``."""

    mean: Tensor
    std: Tensor


def channel_axis(layer: nn.Module) -> Literal[1, -1]:
    """Axis of a layer's channels: the last for linear and layer norm (tokens come first), else after the batch."""
    last = isinstance(layer, nn.Linear | nn.LayerNorm) and not isinstance(layer, LayerNorm2d)
    return -1 if last else 1


def layer_statistics(
    model: nn.Module,
    layers: Layers,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    kind: Literal["per_channel", "per_neuron"],
) -> dict[str, Statistics]:
    """Estimate μ and σ of every layer's output in one pass (Algorithm 1, line 2).

    ``per_channel`` is what the authors' code computes: batch means and unbiased within-batch variances over batch and
    positions, weighted by batch size s: ``μ = Σ s μ_b / (1e-5 + Σ s)``, ``σ² = (1 + Σ s var_b) / (1e-5 + Σ s)`` over
    at most 101 batches; the leftover 1 floors σ at 1/√n. ``per_neuron`` is the population's mean and variance of each
    channel and position over the whole pass, ``σ = sqrt(var + 1e-5)``.

    Args:
        model: In eval mode.
        layers: What to measure.
        batches: Images as the model takes them, and labels (unused).
        kind: Which of the two.
    """
    modules = dict(model.named_modules())
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    seen = 0
    for number, (images, _) in enumerate(batches):
        if kind == "per_channel" and number > 100:
            break
        with torch.no_grad(), record_outputs(model, layers) as records:
            model(images)
        seen += len(images)
        for name in layers.names:
            first, second = _moments(records[name].output, channel_axis(modules[name]), kind)
            before = sums.get(name)
            sums[name] = (before[0] + first, before[1] + second) if before else (first, second)
    finish = _authors_statistics if kind == "per_channel" else _population_statistics
    return {name: finish(*sums[name], seen) for name in layers.names}


def _moments(output: Tensor, axis: int, kind: str) -> tuple[Tensor, Tensor]:
    """Batch-size-weighted mean and variance per channel, or sum and sum of squares per neuron (in float64)."""
    if kind == "per_neuron":
        wide = output.double()  # E[x²] − E[x]² cancels in float32
        return wide.sum(dim=0, keepdim=True), wide.square().sum(dim=0, keepdim=True)
    others = [dim for dim in range(output.dim()) if dim != axis % output.dim()]
    variance, mean = torch.var_mean(output, dim=others, keepdim=True, correction=1)
    return len(output) * mean, len(output) * variance


def _authors_statistics(means: Tensor, variances: Tensor, seen: int) -> Statistics:
    return Statistics(means / (1e-5 + seen), ((1 + variances) / (1e-5 + seen)).sqrt())


def _population_statistics(total: Tensor, squares: Tensor, seen: int) -> Statistics:
    mean = total / seen
    variance = (squares / seen - mean.square()).clamp(min=0)
    dtype = torch.get_default_dtype()
    return Statistics(mean.to(dtype), (variance + 1e-5).sqrt().to(dtype))
