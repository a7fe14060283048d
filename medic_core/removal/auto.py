"""Cloning at the largest temperature whose loss of accuracy stays inside a budget, found by bisection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor, nn

from medic_core.config import AutoConfig, CloningConfig, MedicConfig
from medic_core.data import HOLDOUT_SHARE, Batches, stratified_holdout
from medic_core.errors import DataTooSmallError
from medic_core.evaluation import Share, accuracy, confusion_matrix
from medic_core.removal.bisection import Judge, Judgement, Trial, best, judge_accuracy, next_temperature
from medic_core.removal.medic import clone_by_importance
from medic_core.removal.stages import Stage
from medic_core.removal.training import Checkpoint, NoCheckpoint, Progress, ProgressCallback, State, seeded, silent
from medic_core.suspect import Suspect


def clone_at_best_temperature(
    suspect: Suspect,
    clean: Batches,
    config: AutoConfig,
    *,
    judges: Sequence[Judge] = (),
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Clone at ``config.runs`` temperatures, all under one seed, and return the clone of the ``best`` trial.

    Args:
        suspect: The model and the constructor that it came from.
        clean: Clean labelled images; a fifth of each class is held out and never trains.
        config: Of the search, and of the cloning at every temperature.
        judges: Must accept a clone beside the budget of accuracy.
        progress: Told of all runs as one; the last call holds every trial.
        checkpoint: Keeps the state after every epoch; a state found in it is taken up.

    Raises:
        DataTooSmallError: Nothing can be held out, or too little is left to train.
    """
    train, holdout = split_holdout(clean, config)
    store = checkpoint or NoCheckpoint()
    state = store.load()
    found = _restored(state["left"]) if state else _Found()
    before = _right(suspect.frozen().to(clean.images.device), holdout, suspect)
    while len(found.trials) < config.runs:
        cloning = _cloning(found.trials, config)
        run = Stage(
            store=store,
            progress=progress,
            epochs=config.runs * train.epochs(config),
            steps=train.steps(config),
            before=found.history,
            left=found.state(),
            state=state["stage"] if state else None,
            label={"run": len(found.trials) + 1, "temperature": cloning.temperature},
            trials=found.trials,
        )
        clone = clone_by_importance(suspect, train, cloning, progress=run.hear, checkpoint=run)
        after = _right(clone, holdout, suspect)
        with seeded(config.seed):  # a judge that draws says the same when asked again
            judgements = [judge(clone) for judge in judges]
        judgements.insert(0, judge_accuracy(before, after, budget=config.accuracy_budget))
        trial = Trial(cloning.temperature, before, after, tuple(judgements))
        found, state = found.extended(trial, run.history, clone), None
    total = config.runs * train.epochs(config) * train.steps(config)
    progress(Progress(total, total, found.history, found.trials))
    return _built(suspect, found.weights, clean.images.device, seed=config.seed)


def split_holdout(clean: Batches, config: AutoConfig) -> tuple[Batches, Batches]:
    """Split ``clean`` into images that train and images that judge.

    Raises:
        DataTooSmallError: No class has a second image, or fewer than two images are left to train.
    """
    kept, held = stratified_holdout(clean.labels.cpu(), share=HOLDOUT_SHARE, seed=config.seed)
    if len(held) == 0 or len(kept) < 2:
        raise DataTooSmallError(
            f"auto holds out a fifth of every class: of {len(clean)} clean images {len(kept)} are left to train and"
            f" {len(held)} to judge; at least 2 and 1 are needed"
        )
    return clean.select(kept), clean.select(held)


def _cloning(trials: Sequence[Trial], config: AutoConfig) -> MedicConfig:
    """What the next run clones with."""
    shared = {field.name: getattr(config, field.name) for field in fields(CloningConfig)}
    return MedicConfig(temperature=next_temperature(trials, config), **shared)


def _right(model: nn.Module, holdout: Batches, suspect: Suspect) -> Share:
    return accuracy(confusion_matrix(model, holdout, num_classes=suspect.architecture.num_classes))


@dataclass(frozen=True)
class _Found:
    """What the finished runs came to; ``weights`` are those of the best of them."""

    trials: tuple[Trial, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def extended(self, trial: Trial, history: tuple[Mapping[str, float], ...], clone: nn.Module) -> _Found:
        """Add a run; ``history`` is that of all runs."""
        trials = (*self.trials, trial)
        return _Found(trials, history, clone.state_dict() if best(trials) is trial else self.weights)

    def state(self) -> State:
        """Return the same as a checkpoint holds it."""
        trials = [asdict(trial) for trial in self.trials]
        return {"trials": trials, "history": list(self.history), "weights": self.weights}


def _restored(state: State) -> _Found:
    trials = tuple(
        Trial(
            temperature=trial["temperature"],
            before=Share(**trial["before"]),
            after=Share(**trial["after"]),
            judgements=tuple(Judgement(**judgement) for judgement in trial["judgements"]),
        )
        for trial in state["trials"]
    )
    return _Found(trials, tuple(state["history"]), state["weights"])


def _built(suspect: Suspect, weights: Mapping[str, Tensor], device: torch.device, *, seed: int) -> nn.Module:
    """Build the chosen clone, the same way whether its run was of this process or of one that was killed."""
    with seeded(seed):
        model = suspect.architecture.build()
    model.load_state_dict(weights)
    return model.to(device).to(memory_format=torch.channels_last).eval()
