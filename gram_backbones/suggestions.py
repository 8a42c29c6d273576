"""What a misspelt name may have meant, for error messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A clause for an error message, empty if no known name is close.

    Examples:
        >>> f"there is no model named 'resnet5'{did_you_mean('resnet5', ['resnet50', 'vgg16'])}"
        "there is no model named 'resnet5' (did you mean 'resnet50'?)"
        >>> did_you_mean("swin", ["resnet50", "vgg16"])
        ''
    """
    cases: dict[str, str] = {}
    for candidate in known:
        cases.setdefault(candidate.lower(), candidate)
    close = get_close_matches(str(name).lower(), cases, n=2, cutoff=0.8)
    return f" (did you mean {' or '.join(repr(cases[c]) for c in close)}?)" if close else ""


def check_arguments(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse names of arguments that do not exist.

    Raises:
        ValueError: a name is not known; the message has those that are close, and all.

    Examples:
        >>> check_arguments("AOGNet", ["norms"], ["norm", "with_cp"])
        Traceback (most recent call last):
        ValueError: AOGNet has no argument 'norms' (did you mean 'norm'?); allowed are norm, with_cp
    """
    for name in given:
        if name not in known:
            meant = did_you_mean(name, known)
            allowed = ", ".join(sorted(known))
            raise ValueError(f"{what} has no argument {name!r}{meant}; allowed are {allowed}")
