"""Classes of a config or a checkpoint that contradict those of the data."""

from __future__ import annotations

from collections.abc import Sequence

from .reading import DataError


def check_number(what: str, number: int, name: str, classes: Sequence[str]) -> None:
    """Check a head's number of classes.

    Args:
        what: the config key or the module, for the message.
        number: its number of classes.
        name: the data set.
        classes: its class names.

    Raises:
        DataError: the numbers differ.

    Examples:
        >>> check_number("MODEL.ROI_HEADS.NUM_CLASSES", 80, "pets", ["cat", "dog"])
        Traceback (most recent call last):
        gram_backbones.data.reading.DataError: MODEL.ROI_HEADS.NUM_CLASSES is 80, but data set...
    """
    if number != len(classes):
        raise DataError(
            f"{what} is {number}, but data set {name!r} has {_counted(classes)}: {list(classes)}"
        )


def check_same_classes(what: str, theirs: Sequence[str], name: str, classes: Sequence[str]) -> None:
    """Check that a list of class names is the data set's, in the same order.

    Args:
        what: where the list is from, for the message.
        theirs: the list.
        name: the data set.
        classes: its class names.

    Raises:
        DataError: the lists differ.

    Examples:
        >>> check_same_classes("MODEL.CLASSES", ["dog", "cat"], "pets", ["cat", "dog"])
        Traceback (most recent call last):
        gram_backbones.data.reading.DataError: MODEL.CLASSES has the classes ['dog', 'cat'], but...
    """
    if list(theirs) != list(classes):
        raise DataError(
            f"{what} has the classes {list(theirs)}, but data set {name!r} has {list(classes)}"
        )


def check_checkpoint_classes(
    source: str, theirs: Sequence[str], classes: Sequence[str], *, exact: bool
) -> None:
    """Check that a checkpoint was trained on the run's classes.

    Args:
        source: the checkpoint.
        theirs: its class names; empty if it has none.
        classes: those of the run; empty if unknown.
        exact: every difference counts, as for a resumed run and an evaluation. Otherwise another
            number of classes is allowed: the class predictors then start anew.

    Raises:
        DataError: the lists differ.

    Examples:
        >>> check_checkpoint_classes("coco.pth", ["cat", "dog", "bird"], ["cat"], exact=False)
        >>> check_checkpoint_classes("a.pth", ["cat", "dog"], ["dog", "cat"], exact=False)
        Traceback (most recent call last):
        gram_backbones.data.reading.DataError: a.pth was trained on the classes...
    """
    if not theirs or not classes or list(theirs) == list(classes):
        return
    if exact or len(theirs) == len(classes):
        raise DataError(
            f"{source} was trained on the classes {list(theirs)}, but the data has {list(classes)}"
        )


def _counted(classes: Sequence[str]) -> str:
    return "1 class" if len(classes) == 1 else f"{len(classes)} classes"
