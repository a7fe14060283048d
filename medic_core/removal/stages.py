"""Several trainings as one removal: one checkpoint, one count of steps, one history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from medic_core.config import Config
from medic_core.data import Batches
from medic_core.removal.bisection import Trial
from medic_core.removal.training import Checkpoint, NoCheckpoint, Parts, Progress, ProgressCallback, State, train


@dataclass
class Stage:
    """One training as a part of the whole removal: to it a checkpoint and a listener of its own.

    Attributes:
        store: Keeps the state of the whole.
        progress: Hears of the whole.
        epochs: Of the whole.
        steps: Of each epoch.
        before: One dictionary per epoch of the stages before.
        left: What those stages left, kept beside this one's state.
        state: Of this stage's last epoch, None before its first.
        label: What comes before the losses of each of its epochs.
        trials: Finished runs of a search.
        history: Of the stages so far, this one included.
    """

    store: Checkpoint
    progress: ProgressCallback
    epochs: int
    steps: int
    before: tuple[Mapping[str, float], ...]
    left: State
    state: State | None
    label: Mapping[str, float]
    trials: tuple[Trial, ...] = ()
    history: tuple[Mapping[str, float], ...] = field(init=False, default=())

    def load(self) -> State | None:
        """Return the state of this stage's last epoch, None before its first."""
        return self.state

    def save(self, state: State, *, epoch: int) -> None:
        """Keep the state of this stage with what the stages before it left."""
        overall = len(self.before) + epoch
        self.store.save({"epoch": overall, "stage": state, "left": self.left}, epoch=overall)

    def hear(self, own: Progress) -> None:
        """Report this stage's progress as that of the whole."""
        self.history = (*self.before, *({**self.label, **epoch} for epoch in own.history))
        step = len(self.before) * self.steps + own.step
        self.progress(Progress(step, self.epochs * self.steps, self.history, self.trials))


class Stages:
    """Trains one model after the other on the same images, each for as many epochs as its config says."""

    def __init__(
        self, data: Batches, *, epochs: int, progress: ProgressCallback, checkpoint: Checkpoint | None
    ) -> None:
        self._data, self._epochs, self._progress = data, epochs, progress
        self._store = checkpoint or NoCheckpoint()
        state = self._store.load()
        self._left: State = state["left"] if state else {"models": [], "history": []}
        self._state: State | None = state["stage"] if state else None
        self._entered = 0

    def train(self, model: nn.Module, config: Config, parts: Parts) -> nn.Module:
        """Train ``model`` in the next stage; what a stage left that ended before a kill is put back instead.

        Returns:
            ``model`` in eval mode; it must not change any more.
        """
        number, self._entered = self._entered, self._entered + 1
        if number < len(self._left["models"]):
            model.load_state_dict(self._left["models"][number])
            return model.eval()
        stage = Stage(
            store=self._store,
            progress=self._progress,
            epochs=self._epochs,
            steps=self._data.steps(config),
            before=tuple(self._left["history"]),
            left=self._left,
            state=self._state,
            label={"stage": number + 1},
        )
        train(model, self._data, config, parts, progress=stage.hear, checkpoint=stage)
        self._left = {"models": [*self._left["models"], model.state_dict()], "history": list(stage.history)}
        self._state = None
        return model
