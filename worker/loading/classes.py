"""Whether model and data agree on the classes, and whether there are images enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from worker.loading.images import Layout
from worker.loading.refusal import listed, refused

MIN_CLEAN_IMAGES = 20
MIN_CLEAN_PER_CLASS = 2
_CLASS_NAMES = "/model/class_names"
_TARGET = "/triggered_data/target_class"
_ORDER = "Give class_names in the order of the model's outputs."


def settle_class_names(given: Sequence[str] | None, images: Layout | None, outputs: int | None) -> tuple[str, ...]:
    """The classes in the order of the model's outputs: as given, else the sorted folders of the images.

    Args:
        given: ``class_names`` of the spec.
        images: Clean data, else test data; None where they cannot be read; without ``given`` there are then no names.
        outputs: How many the model has; None where it could not be told.

    Raises:
        RefusedError: ``class_count_mismatch`` or ``duplicate_class_name``.
    """
    if given is not None:
        names = tuple(given)
        if outputs is not None and len(names) != outputs:
            raise refused(
                "class_count_mismatch",
                f"The model has {outputs} outputs, class_names has {len(names)} names. {_ORDER}",
                pointer=_CLASS_NAMES,
            )
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise refused("duplicate_class_name", f"{listed(twice)} is in class_names twice.", pointer=_CLASS_NAMES)
        return names
    folders = images.class_names if images else ()
    if images and outputs is not None and len(folders) != outputs:
        raise refused(
            "class_count_mismatch",
            f"The model has {outputs} outputs, the images lie in {len(folders)} folders. {_ORDER}",
        )
    return folders


def check_folders(layout: Layout, class_names: Sequence[str]) -> None:
    """Refuse folders that are no class, ``unknown_class``."""
    unknown = sorted(set(layout.class_names) - set(class_names))
    if unknown:
        raise refused(
            "unknown_class",
            f"{len(unknown)} folders are no class: {listed(unknown)}. The classes are {listed(class_names)}.",
        )


def missing_classes(layout: Layout, class_names: Sequence[str]) -> tuple[str, ...]:
    """Classes without a folder."""
    there = set(layout.class_names)
    return tuple(name for name in class_names if name not in there)


def check_enough(layout: Layout) -> None:
    """Refuse clean data that is too little to learn from, ``data_too_small``."""
    counts = layout.per_class()
    sparse = [name for name, count in counts.items() if count < MIN_CLEAN_PER_CLASS]
    if sparse or sum(counts.values()) < MIN_CLEAN_IMAGES:
        few = f" Fewer than {MIN_CLEAN_PER_CLASS}: {listed(sparse)}." if sparse else ""
        raise refused(
            "data_too_small",
            f"There are {sum(counts.values())} clean images; at least {MIN_CLEAN_IMAGES} are needed, and "
            f"{MIN_CLEAN_PER_CLASS} of every class that is there.{few} Send more images.",
        )


def check_target(layout: Layout, class_names: Sequence[str], target: str) -> None:
    """Refuse a target that is no class (``unknown_class``), or has all the images (``triggered_only_target``)."""
    if class_names and target not in class_names:
        raise refused(
            "unknown_class",
            f"{listed([target])} is not among the classes, which are {listed(class_names)}.",
            pointer=_TARGET,
        )
    if set(layout.class_names) == {target}:
        raise refused(
            "triggered_only_target",
            f"All triggered images lie in the folder of the target {listed([target])}, where no attack can be seen. "
            "Send images of other classes, each in the folder of its true class.",
        )
