"""The bounds of Appendices A and B that can be computed; docs/theory.md says which are only cited."""

from __future__ import annotations

import math

from torch import Tensor


def margin_loss(logits: Tensor, labels: Tensor, *, gamma: float) -> Tensor:
    """Return each sample's margin loss (Eq. 9), in [0, 1]; 2γ-Lipschitz in the largest change of a logit (Lemma 1).

    Args:
        logits: ``(batch, classes)``, at least two classes.
        labels: True classes, ``(batch,)``.
        gamma: Above 0; the loss is 0 from a margin of 1/γ on.
    """
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -math.inf)
    margin = logits.gather(1, own).squeeze(1) - others.amax(dim=1)
    return (1 - gamma * margin).clamp(0, 1)


def regret_bound(samples: int, complexity: float, delta: float) -> float:
    """Return what the regret stays below with probability 1 − δ (Eq. 6).

    Args:
        samples: |D|, above 0.
        complexity: Empirical Rademacher complexity of the losses on D.
        delta: In (0, 1).
    """
    return 2 * complexity + 3 * math.sqrt(math.log(2 / delta) / samples)


def sample_bound(regret: float, complexity: float, delta: float) -> float:
    """Return how many samples are enough for a regret of ``regret`` with probability 1 − δ (Lemma 4, Eq. 30).

    Args:
        regret: β.
        complexity: Empirical Rademacher complexity R̂ of the losses; it depends on the samples itself.
        delta: In (0, 1).

    Raises:
        ValueError: β ≤ 2R̂, which no number of samples brings about while R̂ stays as it is.
    """
    if regret <= 2 * complexity:
        raise ValueError(f"regret {regret:g} must be above twice the complexity, {2 * complexity:g}")
    return 9 * math.log(2 / delta) / (regret - 2 * complexity) ** 2
