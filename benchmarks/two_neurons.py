"""``python -m benchmarks.two_neurons``: Appendix C's two-neuron problem, cloning against fine-tuning.

A model is ``sgn(w · z)``; its backdoor sets z₂ of a positive sample to k and so makes it negative. How the bound on λ
is derived, and what the figures say, is in ``docs/theory.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.machine import write_figures
from medic_core.importance import neuron_importance

RESULTS = Path(__file__).parent / "results" / "two_neurons.json"
SEEDS, SAMPLES, STEPS = 5, 2000, 40_000
STRENGTHS = (3.0, 9.0, 15.0)
"""w₁' of the suspects: from 10 on, z₁ alone leaves no hinge loss on any sample."""
TRIGGERS = (0.5, 1.0, 2.0, 5.0)
SHARES = (0.5, 0.9, 1.1, 2.0, 10.0)
"""Of the guaranteed λ, for suspects that have one; beside these, all are cloned with the same weights."""
WEIGHTS = (0.1, 1.0, 10.0)
TEMPERATURE = 5.0


@dataclass(frozen=True)
class Samples:
    """Activations ``z``, ``(n, 2)``, and labels ``y`` of ±1, ``(n,)``; float64."""

    z: Tensor
    y: Tensor


def draw_samples(count: int, generator: torch.Generator) -> Samples:
    """Draw from Eq. 34, both labels alike."""
    y = 2.0 * torch.randint(0, 2, (count,), generator=generator).double() - 1
    strong, weak = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return Samples(torch.stack([0.1 + 0.9 * strong, 0.1 * weak], dim=1) * y.unsqueeze(1), y)


def draw_suspects(strength: float, triggers: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one backdoored ``w'`` for each k, ``(len(triggers), 2)``: right on all clean samples.

    ``|w₂'| / w₁'`` lies between 1/k, which flips every positive sample, and 1, the most that spares the clean ones;
    where k < 1 it is 1, and some positive samples are not flipped.
    """
    least = triggers.reciprocal().clamp(max=1)
    ratio = least + (1 - least) * torch.rand(len(triggers), generator=generator, dtype=torch.float64)
    return strength * torch.stack([torch.ones_like(ratio), -ratio], dim=1)


def gradient_terms(w: Tensor, suspects: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Return ``E[1[y w·z < 1] y z]`` and ``E[((w − w')·z) z]``, each of the shape of ``w``, ``(runs, 2)``.

    The gradient of hinge plus λ times cloning loss is 2λ times the second less the first.
    """
    active = (samples.z @ w.T) * samples.y.unsqueeze(1) < 1
    hinge = (active * samples.y.unsqueeze(1)).T @ samples.z / len(samples.y)
    return hinge, (w - suspects) @ (samples.z.T @ samples.z / len(samples.y))


def bound_at(w1: Tensor, suspects: Tensor, samples: Samples) -> Tensor:
    """Return the largest λ at which w₂ = 0 does not fall, for each w₁; infinite where cloning itself raises w₂.

    It never rises with w₁, so the least along a trajectory is that at its largest w₁.
    """
    hinge, cloning = gradient_terms(torch.stack([w1, torch.zeros_like(w1)], dim=1), suspects, samples)
    return torch.where(cloning[:, 1] > 0, hinge[:, 1] / (2 * cloning[:, 1]), math.inf)


def guaranteed_weight(suspects: Tensor, samples: Samples) -> Tensor:
    """Return λ*, up to which w₂ never falls below 0 from w = 0, and above which it ends there; 0 where there is none.

    With w₂ held at 0, w₁ comes as far as hinge and cloning loss balance; λ* is where the bound there is λ itself.
    """
    moments = samples.z.T @ samples.z
    low = suspects[:, 0] + suspects[:, 1] * moments[0, 1] / moments[0, 0]  # where w₁ ends as λ grows
    high = low.clamp(min=1 / samples.z[:, 0].abs().min().item())  # as λ vanishes: no sample has hinge loss
    for _ in range(60):
        w1 = (low + high) / 2
        hinge, cloning = gradient_terms(torch.stack([w1, torch.zeros_like(w1)], dim=1), suspects, samples)
        holds = hinge[:, 0] * cloning[:, 1] <= hinge[:, 1] * cloning[:, 0]
        low, high = torch.where(holds, low, w1), torch.where(holds, w1, high)
    return bound_at(high, suspects, samples)


@dataclass(frozen=True)
class Descent:
    """Where gradient descent ended, ``(runs, 2)``, and the extremes on its way, ``(runs,)``."""

    w: Tensor
    most_w1: Tensor
    least_w2: Tensor


def descend(start: Tensor, suspects: Tensor, weights: Tensor, samples: Samples, *, steps: int) -> Descent:
    """Minimise hinge plus λ times cloning loss by gradient descent on all samples; ``weights`` has a λ for each run."""
    double = 2 * weights.unsqueeze(1)
    rate = 1 / (2 + double * samples.z.square().sum(dim=1).mean())  # 2: beyond the hinge's own curvature on these ways
    w, most_w1, least_w2 = start, start[:, 0], start[:, 1]
    for _ in range(steps):
        hinge, cloning = gradient_terms(w, suspects, samples)
        w = w - rate * (double * cloning - hinge)
        most_w1, least_w2 = most_w1.maximum(w[:, 0]), least_w2.minimum(w[:, 1])
    return Descent(w, most_w1, least_w2)


def success(w: Tensor, triggers: Tensor, samples: Samples) -> Tensor:
    """Share of positive samples that are called negative once z₂ is k, for each run."""
    strong = samples.z[samples.y > 0, :1]
    return (strong * w[:, 0] + triggers * w[:, 1] < 0).double().mean(dim=0)


def accuracy(w: Tensor, samples: Samples) -> Tensor:
    """Share of clean samples that are called right, for each run."""
    return ((samples.z @ w.T) * samples.y.unsqueeze(1) > 0).double().mean(dim=0)


def importance(suspect: Tensor, samples: Samples, *, magnitude: bool) -> Tensor:
    """Weigh both neurons on each sample by Eq. 4, with the gradient of its own hinge loss or that gradient's magnitude.

    Returns:
        Not negative, ``(n, 2)``.
    """
    mean, std = samples.z.mean(dim=0), samples.z.std(dim=0, correction=0)
    active = samples.y * (samples.z @ suspect) < 1
    impact = -TEMPERATURE * std * suspect * (active * samples.y).unsqueeze(1)
    return neuron_importance(TEMPERATURE * (samples.z - mean) / std, impact.abs() if magnitude else impact)


@dataclass(frozen=True)
class Run:
    """One suspect repaired one way.

    ``bound`` is the least of the bounds on λ on the way; of fine-tuning, which starts at w₂ < 0, it says nothing.
    """

    strength: float
    method: str
    weight: float
    bound: float
    least_w2: float
    before: float
    after: float
    accuracy: float


def repair(strength: float, samples: Samples, generator: torch.Generator, *, steps: int = STEPS) -> list[Run]:
    """Repair a suspect for each k in every way."""
    triggers = torch.tensor(TRIGGERS, dtype=torch.float64)
    suspects = draw_suspects(strength, triggers, generator)
    most, scratch = guaranteed_weight(suspects, samples), torch.zeros_like(suspects)
    ways = {"from scratch": (scratch, torch.zeros_like(most))}
    if most.all():
        ways |= {f"cloning, {share:g} λ*": (scratch, share * most) for share in SHARES}
    ways |= {f"cloning, λ = {weight:g}": (scratch, torch.full_like(most, weight)) for weight in WEIGHTS}
    ways["fine-tuning"] = suspects, torch.zeros_like(most)
    start, weights = (torch.cat(parts) for parts in zip(*ways.values(), strict=True))
    suspects, triggers = suspects.repeat(len(ways), 1), triggers.repeat(len(ways))
    ended = descend(start, suspects, weights, samples, steps=steps)
    figures = [weights, bound_at(ended.most_w1, suspects, samples), ended.least_w2]
    figures += [success(w, triggers, samples) for w in (suspects, ended.w)] + [accuracy(ended.w, samples)]
    methods = [method for method in ways for _ in TRIGGERS]
    rows = torch.stack(figures, dim=1).tolist()
    return [Run(strength, method, *row) for method, row in zip(methods, rows, strict=True)]


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Sum up the runs of one strength and method."""
    after = [run.after for run in runs]
    return {
        "strength": runs[0].strength,
        "method": runs[0].method,
        "runs": len(runs),
        "weight": [min(run.weight for run in runs), max(run.weight for run in runs)],
        "below_the_bound": sum(run.weight <= run.bound for run in runs),
        "never_negative_w2": sum(run.least_w2 >= 0 for run in runs),
        "success_before": sum(run.before for run in runs) / len(runs),
        "success_after": sum(after) / len(runs),
        "success_after_range": [min(after), max(after)],
        "least_accuracy": min(run.accuracy for run in runs),
    }


def weigh(samples: Samples) -> list[dict[str, Any]]:
    """Sum up the importance of both neurons, of ``w' = (1, −1)``: all of its samples have hinge loss."""
    rows = []
    for magnitude, label in product((False, True), (1, -1)):
        weights = importance(torch.tensor([1.0, -1.0]).double(), samples, magnitude=magnitude)[samples.y == label]
        rows.append(
            {
                "impact": "magnitude" if magnitude else "signed",
                "label": label,
                "n": len(weights),
                "mean": weights.mean(dim=0).tolist(),
                "compromised_weighs_more": (weights[:, 1] > weights[:, 0]).double().mean().item(),
            }
        )
    return rows


def show(repairs: Sequence[Mapping[str, Any]], weighed: Sequence[Mapping[str, Any]]) -> str:
    """Both tables."""
    lines = ["λ; backdoor success in percent, mean [least, most]; runs in which w₂ was never negative."]
    for row in repairs:
        weights = "–".join(dict.fromkeys(f"{weight:.2g}" for weight in row["weight"]))
        before, after, least, most = (
            100 * share for share in (row["success_before"], row["success_after"], *row["success_after_range"])
        )
        lines.append(
            f"w₁' = {row['strength']:<4g}{row['method']:<17}{weights:<13}{before:5.1f} → {after:5.1f} "
            f"[{least:5.1f}, {most:5.1f}]  {row['never_negative_w2']}/{row['runs']}"
        )
    lines.append("Importance of z₁ and of z₂, which is compromised; share of samples on which z₂ weighs more.")
    for row in weighed:
        strong, weak = row["mean"]
        lines.append(
            f"{row['impact']:<10} y = {row['label']:+d}  {strong:.3f}  {weak:.3f}  {row['compromised_weighs_more']:.1%}"
        )
    return "\n".join(lines)


@click.command()
@click.option("--seed", default=0, show_default=True, help=f"The first of {SEEDS}.")
def main(seed: int) -> None:
    """Repair suspects of three strengths in every way, print the figures and keep them in benchmarks/results."""
    seeds = range(seed, seed + SEEDS)
    runs: list[Run] = []
    for each in seeds:
        generator = torch.Generator().manual_seed(each)
        samples = draw_samples(SAMPLES, generator)
        runs += [run for strength in STRENGTHS for run in repair(strength, samples, generator)]
    kinds = dict.fromkeys((run.strength, run.method) for run in runs)
    repairs = [summarize([run for run in runs if (run.strength, run.method) == kind]) for kind in kinds]
    weighed = weigh(draw_samples(SAMPLES, torch.Generator().manual_seed(seed)))
    click.echo(show(repairs, weighed))
    figures = {
        "command": f"python -m benchmarks.two_neurons --seed {seed}",
        "seeds": [*seeds],
        "n": SAMPLES,
        "steps": STEPS,
        "triggers": TRIGGERS,
        "temperature": TEMPERATURE,
        "repairs": repairs,
        "importance": weighed,
    }
    write_figures(RESULTS, figures)


if __name__ == "__main__":
    main()
