"""The contract that every removal method keeps."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from medic_core.architectures import find_architecture
from medic_core.config import (
    PRESETS,
    AdversarialPruningConfig,
    AttentionDistillationConfig,
    AutoConfig,
    Config,
    DistillConfig,
    FinePruneConfig,
    FineTuneConfig,
    HeadShiftConfig,
    LipschitzPruningConfig,
    MedicConfig,
    ModeConnectivityConfig,
    RemovalConfig,
    ScratchConfig,
    SharedAdversarialConfig,
    expand_preset,
)
from medic_core.data import EPOCHS, STEPS, Batches
from medic_core.errors import DataTooSmallError, LayerNotFoundError, NonFiniteLossError
from medic_core.removal import Progress, Suspect, remove_backdoor
from medic_core.removal.auto import split_holdout
from medic_core.removal.medic import Lesson, Shown, prepare_cloning
from medic_core.removal.optimizers import Muon, build_optimizers
from medic_core.removal.training import State, seeded, take_step, without_dropout

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_EPOCH: tuple[RemovalConfig, ...] = (
    MedicConfig(epochs=1, batch_size=8),
    AutoConfig(epochs=1, batch_size=8, runs=2),
    ScratchConfig(epochs=1, batch_size=8),
    FineTuneConfig(epochs=1, batch_size=8),
    FinePruneConfig(epochs=1, batch_size=8),
    AttentionDistillationConfig(epochs=1, teacher_epochs=1, batch_size=8),
    ModeConnectivityConfig(epochs=1, endpoint_epochs=1, batch_size=8),
    AdversarialPruningConfig(epochs=1, batch_size=8, learning_rate=2.0, threshold=0.9),  # few steps must cut something
    DistillConfig(epochs=1, batch_size=8),
    HeadShiftConfig(epochs=1, batch_size=8),
    SharedAdversarialConfig(epochs=1, batch_size=8),
    LipschitzPruningConfig(),
    MedicConfig(**expand_preset({"preset": "authors", "epochs": 1, "batch_size": 8})),
)
NAMES = [config.method for config in ONE_EPOCH[:-1]] + ["medic-authors"]
each_method = pytest.mark.parametrize("config", ONE_EPOCH, ids=NAMES)
TRAINING = tuple(config for config in ONE_EPOCH if isinstance(config, Config))
each_training = pytest.mark.parametrize("config", TRAINING, ids=[name for name in NAMES if "lipschitz" not in name])


def epochs_in_all(config: RemovalConfig) -> int:
    """Of all stages and runs: every setting of epochs counts."""
    epochs = [getattr(config, each.name) for each in dataclasses.fields(config) if each.name.endswith("epochs")]
    return sum(epochs) * (config.runs if isinstance(config, AutoConfig) else 1)


def steps_in_all(config: RemovalConfig, clean: Batches) -> int:
    if not isinstance(config, Config):
        return 1  # it does not train
    trains = split_holdout(clean, config)[0] if isinstance(config, AutoConfig) else clean
    return epochs_in_all(config) * trains.steps(config)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_method_is_held_to_the_contract() -> None:
    assert {type(config) for config in ONE_EPOCH} == set(get_args(RemovalConfig))


@each_method
def test_repeats_itself_and_leaves_suspect_and_random_state_alone(
    config: RemovalConfig, suspect: Suspect, clean: Batches
) -> None:
    suspect.model.train()  # also the mode is the caller's
    before, flags = weights(suspect.model), [p.requires_grad for p in suspect.model.parameters()]
    images, state = clean.images.clone(), torch.get_rng_state()
    first = remove_backdoor(suspect, clean, config)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    second = remove_backdoor(suspect, clean, config)
    assert same(weights(first), weights(second))
    assert same(before, weights(suspect.model))
    assert suspect.model.training
    assert flags == [p.requires_grad for p in suspect.model.parameters()]
    assert torch.equal(images, clean.images)
    assert not first.training
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint({p.data_ptr() for p in suspect.model.parameters()})


@each_training  # nothing is drawn without training
def test_another_seed_gives_other_weights(config: RemovalConfig, suspect: Suspect, clean: Batches) -> None:
    other = dataclasses.replace(config, seed=1)
    assert not same(weights(remove_backdoor(suspect, clean, config)), weights(remove_backdoor(suspect, clean, other)))


class Killed(Exception):  # noqa: N818 - it stands for a kill, not an error
    """The process ends here."""


class Kept:
    """A checkpoint as a file would hold it, that may end the process after an epoch."""

    def __init__(self, *, killed_after: int | None = None) -> None:
        self.saved: list[int] = []
        self._file: bytes | None = None
        self._killed_after = killed_after

    def load(self) -> State | None:
        return torch.load(io.BytesIO(self._file), weights_only=True) if self._file else None

    def save(self, state: State, *, epoch: int) -> None:
        assert state["epoch"] == epoch
        file = io.BytesIO()
        torch.save(state, file)
        self._file = file.getvalue()
        self.saved.append(epoch)
        if epoch == self._killed_after:
            self._killed_after = None
            raise Killed


THREE_EPOCHS = tuple(dataclasses.replace(config, epochs=3) for config in TRAINING)


@pytest.mark.parametrize(
    ("config", "killed_after"),
    [(config, epoch + 1) for config in THREE_EPOCHS for epoch in range(epochs_in_all(config))],
    ids=lambda value: getattr(value, "method", value),
)
def test_a_run_taken_up_ends_with_the_same_weights_and_metrics(
    config: RemovalConfig, killed_after: int, suspect: Suspect, clean: Batches
) -> None:
    seen: list[Progress] = []
    undisturbed = remove_backdoor(suspect, clean, config, progress=seen.append)
    last = seen[-1]
    kept = Kept(killed_after=killed_after)
    with pytest.raises(Killed):
        remove_backdoor(suspect, clean, config, checkpoint=kept)
    seen.clear()
    resumed = remove_backdoor(suspect, clean, config, progress=seen.append, checkpoint=kept)
    assert same(weights(undisturbed), weights(resumed))
    assert seen[-1] == last
    assert len(last.history) == epochs_in_all(config)
    assert kept.saved == list(range(1, epochs_in_all(config) + 1))  # no epoch ran twice
    assert seen[0].step == killed_after * steps_in_all(config, clean) / epochs_in_all(config)


@each_method
def test_progress_counts_every_step(config: RemovalConfig, suspect: Suspect, clean: Batches) -> None:
    seen: list[Progress] = []
    remove_backdoor(suspect, clean, config, progress=seen.append)
    total, steps = steps_in_all(config, clean), [each.step for each in seen]
    assert steps == sorted(steps)
    assert set(steps) == set(range(total + 1))
    assert {each.total_steps for each in seen} == {total}
    assert len(seen[-1].history) == epochs_in_all(config)


@each_method
def test_life_is_shown_at_least_once_in_twenty_passes_through_a_model(
    config: RemovalConfig, suspect: Suspect, clean: Batches
) -> None:
    passes, longest = 0, 0

    def count(module: nn.Module, _: object) -> None:
        nonlocal passes, longest
        if isinstance(module, nn.Linear):  # every network has one, also folded or with weights of another
            passes += 1
            longest = max(longest, passes)

    def alive(*_: object) -> None:
        nonlocal passes
        passes = 0

    with register_module_forward_pre_hook(count):
        remove_backdoor(suspect, dataclasses.replace(clean, alive=alive), config, progress=alive)
    assert longest <= 20


@each_training  # without training there is no loss
def test_a_loss_that_is_not_finite_is_an_error(config: RemovalConfig, suspect: Suspect, clean: Batches) -> None:
    broken = dataclasses.replace(clean, preprocessing=dataclasses.replace(clean.preprocessing, mean=(math.nan,) * 3))
    with pytest.raises(NonFiniteLossError):
        remove_backdoor(suspect, broken, config)


def test_too_few_images_are_refused(suspect: Suspect, clean: Batches) -> None:
    with pytest.raises(DataTooSmallError):
        remove_backdoor(suspect, clean.select(torch.tensor([0])), ONE_EPOCH[0])


def test_a_layer_chosen_by_name_must_exist(suspect: Suspect, clean: Batches) -> None:
    with pytest.raises(LayerNotFoundError, match="nowhere"):
        remove_backdoor(suspect, clean, MedicConfig(layers=("nowhere",)))


def test_dropout_is_off_while_cloning_and_back_afterwards(clean: Batches) -> None:
    architecture = find_architecture("medic/wide_resnet10_1", num_classes=3, options={"dropout": 0.5})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        suspect = Suspect(architecture.build().eval(), architecture)
    plain = Suspect(suspect.model, find_architecture("medic/wide_resnet10_1", num_classes=3))
    with_dropout = remove_backdoor(suspect, clean, ONE_EPOCH[0])
    assert same(weights(with_dropout), weights(remove_backdoor(plain, clean, ONE_EPOCH[0])))
    assert {module.p for module in with_dropout.modules() if isinstance(module, nn.Dropout)} == {0.5}


def test_dropout_comes_back_also_after_an_error() -> None:
    layer = nn.Dropout(0.3)

    def fail() -> None:
        assert layer.p == 0.0
        raise Killed

    with pytest.raises(Killed), without_dropout(nn.Sequential(layer)):
        fail()
    assert layer.p == 0.3


def test_little_data_is_trained_on_for_more_epochs_where_the_config_does_not_say_how_many(clean: Batches) -> None:
    config = MedicConfig(batch_size=8)
    assert clean.epochs(config) * clean.steps(config) >= STEPS
    assert (clean.epochs(config) - 1) * clean.steps(config) < STEPS
    assert clean.epochs(dataclasses.replace(config, epochs=3)) == 3
    plenty = clean.select(torch.arange(33).repeat(400))
    assert plenty.epochs(config) == EPOCHS


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a number, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def muon(model: nn.Module) -> Sequence[torch.optim.Optimizer]:
    """Without the Adam beside it, which reads counters of its own that are on the CPU."""
    return [each for each in build_optimizers(model, MedicConfig()) if isinstance(each, Muon)]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_step_never_waits_for_the_device(preset: str, suspect: Suspect, clean: Batches) -> None:
    config = MedicConfig(**expand_preset({"preset": preset, "batch_size": 8}))
    with seeded(0), Waits() as waits:
        cloning = prepare_cloning(suspect, clean, config)
        batches = clean.shuffled(config, epoch=0)
        waits.seen.clear()
        take_step(muon(cloning.clone), cloning.parts(*next(batches)))
    assert waits.seen == []


def test_a_seed_does_not_start_a_gpu_that_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # asked for the state of one, torch would start it
    with seeded(0):
        first = torch.rand(1)
    with seeded(0):
        assert torch.rand(1) == first


def test_a_layer_whose_channels_come_last_is_no_map_though_it_has_as_many_as_columns() -> None:
    foreign = torch.ones(2, 1, 8, 8)
    shown = Shown(torch.zeros(2, 3, 8, 8), 2, slice(0, 2), foreign)
    taught = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 8, 8, 8)
    for axis, swapped, weight in ((1, True, 1), (-1, False, 0)):
        lesson = Lesson(taught.clone(), torch.ones(2, 8, 8, 8))
        shown.mix(lesson, axis=axis)
        assert torch.equal(lesson.taught, taught.flip(0) if swapped else taught)
        assert (lesson.importance == weight).all()


@each_training
def test_micro_batches_never_leave_a_single_image_to_batch_normalisation(config: RemovalConfig, clean: Batches) -> None:
    architecture = find_architecture("torchvision/resnet18", num_classes=3)  # ends in one position at 16 × 16 pixels
    with seeded(0):
        suspect = Suspect(architecture.build().eval(), architecture)
    few = clean.select(torch.arange(9))
    found = remove_backdoor(suspect, few, dataclasses.replace(config, batch_size=9, micro_batch_size=4))
    assert all(tensor.isfinite().all() for tensor in found.state_dict().values())
