"""From counts to the records that a job gives back: evaluation, summary, report, and how to run the weights again."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.models import (
    Comparison,
    Environment,
    Evaluation,
    InputRecord,
    Judgement,
    Measured,
    ModelRecord,
    Purpose,
    Summary,
    TemperatureSearch,
    TemperatureTrial,
)
from medic_core.config import CloningConfig, Config, RemovalConfig, SharedAdversarialConfig
from medic_core.evaluation import (
    Share,
    accuracy,
    accuracy_per_class,
    attack_success,
    defense_effectiveness_rating,
    recovery,
)
from medic_core.removal.bisection import Trial, best
from worker.task import Intake, Task

FEWEST_MIXED = 4
"""Images of a micro-batch in which pairs to be mixed are found as often as in a large one."""


def evaluation(
    clean: Tensor | None, triggered: Tensor | None, *, class_names: tuple[str, ...], target: int | None
) -> Evaluation:
    """Describe one model by its confusion matrices.

    Args:
        clean: Of the test images; None without such.
        triggered: Of the triggered images by true class, with their ``target``; None without such.
        class_names: In the order of the rows.
        target: Index of the target class.
    """
    known: dict[str, Any] = {}
    if clean is not None:
        per_class = zip(class_names, accuracy_per_class(clean), strict=True)
        known = {
            "clean_accuracy": _measured(accuracy(clean)),
            "per_class": {name: _measured(share) for name, share in per_class if share.n},
            "confusion": clean.tolist(),
        }
    if triggered is not None and target is not None:
        known |= {
            "attack_success_rate": _measured(attack_success(triggered, target=target)),
            "recovery_accuracy": _measured(recovery(triggered, target=target)),
            "triggered_confusion": triggered.tolist(),
        }
    return Evaluation(**known)


def _measured(share: Share) -> Measured:
    return Measured(value=share.value, count=share.count, n=share.n, interval=share.interval)


def summary(before: Evaluation, after: Evaluation) -> Summary:
    """Set the figures of suspect and clone side by side."""
    accuracy = _both(before.clean_accuracy, after.clean_accuracy)
    success = _both(before.attack_success_rate, after.attack_success_rate)
    rating = None
    if accuracy and success:
        rating = defense_effectiveness_rating(
            accuracy_before=accuracy.before,
            accuracy_after=accuracy.after,
            success_before=success.before,
            success_after=success.after,
        )
    return Summary(
        clean_accuracy=accuracy,
        attack_success_rate=success,
        recovery_accuracy=_both(before.recovery_accuracy, after.recovery_accuracy),
        defense_effectiveness_rating=rating,
    )


def _both(before: Measured | None, after: Measured | None) -> Comparison | None:
    return _compared(before, after) if before and after else None


def _compared(before: Measured, after: Measured) -> Comparison:
    return Comparison(
        before=before.value,
        after=after.value,
        n=after.n,
        interval_before=before.interval,
        interval_after=after.interval,
    )


def temperature_search(trials: Sequence[Trial]) -> TemperatureSearch | None:
    """Say what a search tried and why it chose; None where there was none."""
    if not trials:
        return None
    chosen = best(trials)
    if chosen.accepted:
        verdict = f"Temperature {chosen.temperature:.3g} is the largest of {len(trials)} tried whose clone is accepted"
    else:
        verdict = (
            f"No clone of {len(trials)} temperatures tried is accepted; {chosen.temperature:.3g} lost least accuracy"
        )
    details = "; ".join(judgement.detail for judgement in chosen.judgements)
    return TemperatureSearch(
        trials=tuple(map(_trial, trials)),
        chosen=chosen.temperature,
        accepted=chosen.accepted,
        reason=f"{verdict}: {details}.",
        holdout_samples=chosen.after.n,
    )


def _trial(trial: Trial) -> TemperatureTrial:
    return TemperatureTrial(
        temperature=trial.temperature,
        accuracy=_compared(_measured(trial.before), _measured(trial.after)),
        drop=trial.drop,
        accepted=trial.accepted,
        judgements=tuple(Judgement(**asdict(judgement)) for judgement in trial.judgements),
    )


def search_warnings(search: TemperatureSearch | None) -> tuple[str, ...]:
    """Warn of a search that had to keep a clone which it would rather not."""
    return () if search is None or search.accepted else (search.reason,)


def micro_batch_warnings(model: nn.Module, removal: RemovalConfig) -> tuple[str, ...]:
    """Warn where micro-batches are not the same as the whole batch: normalised, or mixed, together."""
    if not isinstance(removal, Config) or isinstance(removal, SharedAdversarialConfig):  # which only reads statistics
        return ()
    size = removal.micro_batch_size
    if size is None or size >= removal.batch_size:
        return ()
    warnings = []
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        warnings.append(
            f"Batch normalisation took its statistics from micro-batches of up to {size} images, not from the batch of"
            f" {removal.batch_size}: with enough memory leave micro_batch_size out."
        )
    if isinstance(removal, CloningConfig) and removal.mixing and size < FEWEST_MIXED:
        warnings.append(
            f"Fewer images were mixed than {removal.mixing:.0%}, or none: pairs are made within micro-batches, of which"
            f" halves are distorted. Set micro_batch_size to {FEWEST_MIXED} at least."
        )
    return tuple(warnings)


def input_records(task: Task, intake: Intake) -> dict[Purpose, InputRecord]:
    """Describe every input: whose bytes, how many, what was found in them."""
    records: dict[Purpose, InputRecord] = {}
    for role, file in task.files.items():
        found = intake.inputs[role]
        known = {
            "file_id": file.id,
            "sha256": file.sha256,
            "bytes": file.bytes,
            "format": found.format,
            "samples": found.samples,
        }
        if role == "model":
            architecture = task.spec.model.architecture
            records[role] = ModelRecord(**known, architecture=architecture, num_classes=len(intake.class_names))
        else:
            records[role] = InputRecord(**known)
    return records


def output_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def environment(device: torch.device, intake: Intake) -> Environment:
    """Say what the weights depend on beside the inputs, and in what sandbox those were read."""
    return Environment(
        medic=version("medic"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=str(device),
        threads=torch.get_num_threads(),
        sandbox=intake.sandbox,
    )


def missing_evidence(*, triggered: bool, test_source: str | None) -> tuple[str, ...]:
    """Say in sentences what was not measured."""
    missing = []
    if not triggered:
        missing.append("No triggered data were given: attack success and recovery were not measured.")
    if test_source is None:
        missing.append(
            "Neither clean nor test data were given: accuracy was not measured, nor whether the model works."
        )
    if test_source == "holdout":
        missing.append("No test data were given: accuracy was measured on a fifth of the clean data, held out.")
    return tuple(missing)


def model_config(task: Task, class_names: tuple[str, ...]) -> Mapping[str, Any]:
    """What is needed to build the model again and to feed it, under timm's names."""
    model = task.spec.model
    preprocessing = asdict(model.preprocessing)
    return {
        "architecture": model.architecture,
        "model_args": model.options,
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "pretrained_cfg": {
            "input_size": [3, *preprocessing.pop("input_size")],
            **preprocessing,
            "num_classes": len(class_names),
        },
    }
