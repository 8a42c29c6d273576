"""What a misspelt name may have meant, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
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
