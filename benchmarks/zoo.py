"""``python -m benchmarks.zoo NAME``: train a model that ``benchmarks/zoo`` keeps, WRN-16-1 on ``train-20000``.

- ``benign``: 35 epochs, the rate from 0.1 down half a cosine per epoch.
- ``heldout``: as ``benign``, 24 epochs on what is left of ``train-20000`` without the validation images of
  ``benchmarks.suspects``: they tell what a repair of this model costs on images that it has not seen.
- ``sig``: four fifths of the target class carry the trigger of ``medic_core.attacks.triggers.sig``, under their true
  label; 16 epochs, the rate up to 0.15 over the first fifth of the steps and then down to 0.

SGD with Nesterov momentum 0.9, weight decay 5e-4, batches of 128, augmentation as the authors', seed 0, one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from benchmarks.suspects import TARGET, images, validation, weights_of
from medic_core.architectures import find_architecture
from medic_core.attacks.triggers import sig
from medic_core.config import ScratchConfig
from medic_core.data import Batches
from medic_core.evaluation import accuracy, attack_success, confusion_matrix
from medic_core.removal.training import seeded

EPOCHS = {"benign": 35, "heldout": 24, "sig": 16}
RATES: dict[str, Callable[[float, int], float]] = {
    "benign": lambda _, epoch: 0.05 * (1 + math.cos(math.pi * epoch / EPOCHS["benign"])),
    "heldout": lambda _, epoch: 0.05 * (1 + math.cos(math.pi * epoch / EPOCHS["heldout"])),
    "sig": lambda done, _: 0.15 * (done / 0.2 if done < 0.2 else (1 - done) / 0.8),
}


def training_images(name: str) -> Batches:
    """Clean images, or poisoned ones."""
    data = images("train-20000")
    if name == "benign":
        return data
    if name == "heldout":
        shown = {image.numpy().tobytes() for image in validation().images}
        return data.select(
            torch.tensor([image.numpy().tobytes() not in shown for image in data.images]).nonzero()[:, 0]
        )
    members = (data.labels == TARGET).nonzero().flatten()
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(3))
    chosen = members[order[: int(0.8 * len(members))]]
    poisoned = data.images.clone()
    poisoned[chosen] = sig(poisoned[chosen])
    return Batches(poisoned, data.labels, data.preprocessing)


def train(name: str) -> nn.Module:
    """Train the model called ``name``."""
    data, config = training_images(name), ScratchConfig(batch_size=128)
    model = find_architecture("medic/wide_resnet16_1", num_classes=10).build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    total = EPOCHS[name] * data.steps(config)
    for epoch in range(EPOCHS[name]):
        for number, (inputs, labels) in enumerate(data.shuffled(config, epoch=epoch)):
            rate = RATES[name]((epoch * data.steps(config) + number) / total, epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return model.eval()


@click.command()
@click.argument("name", type=click.Choice(sorted(EPOCHS)))
def main(name: str) -> None:
    """Train, print accuracy and attack success on test-1000, and keep the weights."""
    torch.set_num_threads(1)
    with seeded(0):
        model = train(name)
    test = images("test-1000")
    stamped = Batches(sig(test.images), test.labels, test.preprocessing)
    plain, triggered = (confusion_matrix(model, data, num_classes=10) for data in (test, stamped))
    success = attack_success(triggered, target=TARGET)
    click.echo(f"{name}: accuracy {accuracy(plain).value:.1%}, success of SIG {success.value:.1%}")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights_of(name))


if __name__ == "__main__":
    main()
