"""``python -m benchmarks.speed``: an optimiser step of cloning beside its slow transcription and beside its floor.

For presets ``authors`` and ``default`` on WRN-16-1, batches of 64, all in one run, step by step in turn:

- ``transcription``: Algorithm 1 with ordinary operations and autograd (``benchmarks/transcription.py``), images opened
  and augmented one by one by PIL and torchvision;
- ``ours``: what ``remove_backdoor`` does, data included;
- ``floor``: the passes that are asked for and nothing else: the clone forward and backward, the same optimiser, the
  suspect as it was uploaded forward and the gradient at its recorded activations, of distorted images at the last layer
  alone; on the same tensors every time, in the faster memory format.

The headline ratios are those of a step of ``default``: how many of them fit into one step of the transcription of
Algorithm 1 as the authors run it (preset ``authors``), and what it takes beyond its own floor.

All of it runs in the environment that a worker gives its trainer. Memory is the peak of a process of its own that takes
a few steps, less what it held before the first.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.machine import forget_peak, megabytes, write_figures
from benchmarks.suspects import images, suspect
from benchmarks.transcription import Spread, losses
from medic_core.architectures import find_architecture
from medic_core.config import MedicConfig, Preprocessing, expand_preset
from medic_core.data import Batches
from medic_core.removal import Suspect, remove_backdoor
from medic_core.removal.medic import prepare_cloning
from medic_core.removal.optimizers import build_optimizers
from medic_core.removal.training import Part, seeded, take_step
from worker.process import CHILD_ENVIRONMENT

RESULTS = Path(__file__).parent / "results" / "speed.json"
BATCH, STEPS, WARM_UP = 64, 50, 3
PRESETS = ("authors", "default")
VARIANTS = ("transcription", "ours", "floor")
Step = Callable[[], object]


def config_of(preset: str, batch: int = BATCH) -> MedicConfig:
    """Settings of a preset, but for the batch size, which is the same for all."""
    return MedicConfig(**expand_preset({"preset": preset, "batch_size": batch}))


class _PilImages(Dataset[tuple[Tensor, int]]):
    """Images opened and augmented one by one, as a plain training script does."""

    def __init__(self, data: Batches, config: MedicConfig) -> None:
        self._images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
        self._labels = data.labels.tolist()
        self._augment = transforms.Compose(
            [
                transforms.RandomCrop(data.images.shape[-1], padding=config.crop_padding),
                transforms.RandomRotation(config.rotation_degrees),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._augment(self._images[index]), self._labels[index]


def transcription_step(given: Suspect, data: Batches, config: MedicConfig) -> Step:
    """One step of the slow transcription; what the clone is shown is ours, which costs next to nothing."""
    cloning = prepare_cloning(given, data, config)
    spread = {name: Spread(each.mean, each.std) for name, each in cloning.statistics.items()}
    teacher, clone = (model.to(memory_format=torch.contiguous_format) for model in (given.frozen(), cloning.clone))
    optimizers = build_optimizers(clone.train(), config)
    loader = DataLoader(_PilImages(data, config), batch_size=config.batch_size, shuffle=True, drop_last=True)
    batches = (batch for _ in count() for batch in loader)

    def parts() -> Iterator[Part]:
        inputs, labels = next(batches)
        shown = cloning.shown_to_clone(inputs)
        classification, cloned = losses(teacher, clone, inputs, shown, labels, spread, config, batch=len(labels))
        loss = classification + config.cloning_weight * cloned
        yield Part({"loss": loss}, [loss], [None])

    return lambda: take_step(optimizers, parts())


def our_step(given: Suspect, data: Batches, config: MedicConfig) -> Step:
    """One step as ``remove_backdoor`` takes it."""
    cloning = prepare_cloning(given, data, config)
    optimizers = build_optimizers(cloning.clone.train(), config)
    batches = (
        batch for epoch in count() for batch in data.shuffled(config, epoch=epoch) if len(batch[1]) == config.batch_size
    )
    return lambda: take_step(optimizers, cloning.parts(*next(batches)))


def floor_step(given: Suspect, data: Batches, config: MedicConfig) -> Step:
    """One step of the passes alone, through the suspect without what we fold in it, on one batch that lies ready."""
    cloning = prepare_cloning(given, data, config)
    teacher, clone = given.frozen().to(memory_format=torch.channels_last), cloning.clone.train()
    optimizers = build_optimizers(clone, config)
    inputs, labels = next(data.shuffled(config, epoch=0))
    inputs = inputs.to(memory_format=torch.channels_last).requires_grad_()
    whole = len(labels) - round(config.corruption * len(labels))
    outputs: dict[str, Tensor] = {}
    for name in cloning.layers.names:
        teacher.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))

    def ask(some: slice, names: Sequence[str]) -> None:
        lesson = F.cross_entropy(teacher(inputs[some]), labels[some])
        torch.autograd.grad(lesson, [outputs[name] for name in names], materialize_grads=True)
        outputs.clear()

    def parts() -> Iterator[Part]:
        ask(slice(whole), cloning.layers.names)
        if whole < len(labels):
            ask(slice(whole, None), [cloning.layers.last])
        loss = F.cross_entropy(clone(inputs.detach()), labels)
        yield Part({"loss": loss}, [loss], [None])

    return lambda: take_step(optimizers, parts())


STEP_OF = {"transcription": transcription_step, "ours": our_step, "floor": floor_step}


def step_times(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, all variants in turn, after a few that do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - began)
    return times


def in_own_process(option: str, *values: str, threads: int) -> float:
    """What a process of its own prints that is asked for one figure, in megabytes."""
    command = [sys.executable, "-m", "benchmarks.speed", option, *values, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own module
    return float(done.stdout)


def measure_memory(variant: str, preset: str) -> float:
    """Take three steps in this process and return by how many megabytes its peak rose."""
    config = config_of(preset)
    with seeded(0):
        step = STEP_OF[variant](suspect("badnet"), _few(images("clean-2500")), config)
        forget_peak()
        before = megabytes("VmHWM")
        for _ in range(3):
            step()
    return megabytes("VmHWM") - before


def measure_resnet50(micro_batch_size: int | None) -> float:
    """Clone a ResNet-50 for one step on 32 images of 224×224 and return this process's peak in megabytes, all in."""
    architecture = find_architecture("torchvision/resnet50", num_classes=10)
    with seeded(0):
        given = Suspect(architecture.build().eval(), architecture)
    pixels = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8)
    data = Batches(pixels, torch.arange(32) % 10, Preprocessing(input_size=(224, 224)))
    forget_peak()
    remove_backdoor(given, data, MedicConfig(epochs=1, batch_size=32, micro_batch_size=micro_batch_size))
    return megabytes("VmHWM")


def _few(data: Batches) -> Batches:
    """Four batches: enough for the statistics and the steps of a memory measurement."""
    return data.select(torch.arange(0, len(data), len(data) // (4 * BATCH)))


def growth(threads: int) -> list[dict[str, Any]]:
    """Median step of ours and of the floor over width and resolution, by preset default."""
    rows = []
    config = config_of("default")
    for width, side in ((1, 32), (2, 32), (4, 32), (1, 64), (1, 128)):
        architecture = find_architecture(f"medic/wide_resnet16_{width}", num_classes=10)
        with seeded(0):
            given = Suspect(architecture.build().eval(), architecture)
            data = _few(images("clean-2500"))
            data = replace(data, images=F.interpolate(data.images.float(), size=side).byte())
            steps = {name: STEP_OF[name](given, data, config) for name in ("ours", "floor")}
            times = step_times(steps, 7)
        medians = {name: 1000 * statistics.median(each) for name, each in times.items()}
        rows.append({"width": width, "side": side, "threads": threads, **medians})
    return rows


def table(preset: str, repeats: int, threads: int) -> dict[str, Any]:
    """Time and memory of one preset, each variant, with the ratios."""
    config = config_of(preset)
    with seeded(0):
        given, data = suspect("badnet"), images("clean-2500")
        times = step_times({name: STEP_OF[name](given, data, config) for name in VARIANTS}, repeats)
    medians = {name: statistics.median(each) for name, each in times.items()}
    memory = {name: in_own_process("--memory-of", name, preset, threads=threads) for name in VARIANTS}
    return {
        "preset": preset,
        "layers": len(prepare_cloning(given, _few(data), config).layers.names),
        "milliseconds": {name: round(1000 * each, 1) for name, each in medians.items()},
        "memory_megabytes": {name: round(each) for name, each in memory.items()},
        "ratios": {
            "transcription_over_ours": round(medians["transcription"] / medians["ours"], 3),
            "ours_over_floor": round(medians["ours"] / medians["floor"], 3),
            "memory_ours_over_floor": round(memory["ours"] / memory["floor"], 3),
        },
    }


def job_times(slow_step: float) -> dict[str, Any]:
    """Seconds of training by preset default over the number of clean images, and of 60 epochs of ``slow_step`` s."""
    everything, config = images("clean-2500"), MedicConfig()
    with seeded(0):
        times = step_times({"ours": our_step(suspect("badnet"), _few(everything), config)}, STEPS)["ours"]
    rows = []
    for clean in (250, 500, 1000, 2500, 5000, 10_000):
        data = everything.select(torch.arange(clean) % len(everything))
        steps = data.epochs(config) * data.steps(config)
        rows.append({"clean": clean, "epochs": data.epochs(config), "seconds": round(steps * statistics.median(times))})
    slow = 60 * everything.steps(config_of("authors")) * slow_step
    ours = next(row["seconds"] for row in rows if row["clean"] == len(everything))
    return {"default": rows, "transcription_60_epochs": round(slow), "share": round(ours / slow, 3)}


@click.command()
@click.option("--steps", default=STEPS, show_default=True, help="Of each variant.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--memory-of", nargs=2, metavar="VARIANT PRESET", help="Only print the megabytes of one variant.")
@click.option("--resnet50", type=int, metavar="SIZE", help="Only print a ResNet-50's; micro-batches of SIZE, or 0.")
def main(steps: int, threads: int, memory_of: tuple[str, str] | None, resnet50: int | None) -> None:
    """Time every variant of both presets, print the table, and keep it in benchmarks/results."""
    if any(name not in os.environ for name in CHILD_ENVIRONMENT):  # they are read when a process starts
        command = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]]
        os.execve(sys.executable, command, {**CHILD_ENVIRONMENT, **os.environ})  # noqa: S606 - ourselves
    torch.set_num_threads(threads)
    if memory_of:
        click.echo(f"{measure_memory(*memory_of):.1f}")
    elif resnet50 is not None:
        click.echo(f"{measure_resnet50(resnet50 or None):.1f}")
    else:
        figures = measure_all(steps, threads)
        click.echo(show(figures))
        write_figures(RESULTS, figures)


def measure_all(steps: int, threads: int) -> dict[str, Any]:
    """Every figure that is kept."""
    tables = {preset: table(preset, steps, threads) for preset in PRESETS}
    slow = tables["authors"]["milliseconds"]["transcription"]
    memory = {size: round(in_own_process("--resnet50", str(size), threads=threads)) for size in (0, 16, 8)}
    return {
        "command": f"python -m benchmarks.speed --steps {steps} --threads {threads}",
        "torch": torch.__version__,
        "threads": threads,
        "steps": steps,
        "ratios": {
            "transcription_over_ours": round(slow / tables["default"]["milliseconds"]["ours"], 3),
            "ours_over_floor": tables["default"]["ratios"]["ours_over_floor"],
        },
        "presets": tables,
        "jobs": job_times(slow / 1000),
        "growth": growth(threads),
        "resnet50_megabytes_by_micro_batch": memory,
    }


def show(figures: Mapping[str, Any]) -> str:
    """The same as a table."""
    lines = [f"batch {BATCH}, median of {figures['steps']} steps of each, {figures['threads']} threads"]
    for preset, found in figures["presets"].items():
        lines.append(f"preset {preset}, {found['layers']} layers")
        for name in VARIANTS:
            lines.append(f"  {name:<14}{found['milliseconds'][name]:8.1f} ms{found['memory_megabytes'][name]:8.0f} MB")
        lines.append("  " + ", ".join(f"{name} {ratio}" for name, ratio in found["ratios"].items()))
    jobs = figures["jobs"]
    for row in jobs["default"]:
        lines.append(f"  a default job on {row['clean']} images: {row['epochs']} epochs, {row['seconds']} s")
    lines.append(
        f"  60 epochs of the transcription: {jobs['transcription_60_epochs']} s; ours is {jobs['share']} of it"
    )
    resnet50 = figures["resnet50_megabytes_by_micro_batch"]
    lines.append(f"  ResNet-50, 32 images of 224×224, peak MB by micro-batch (0: none): {resnet50}")
    for row in figures["growth"]:
        lines.append(
            f"  WRN-16-{row['width']} at {row['side']}: ours {row['ours']:.0f} ms, floor {row['floor']:.0f} ms"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
