"""Mistakes in configs, drawn at random, and what becomes of a run with one."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .arguments import make_parser

NAMED, WORKS, UNNAMED, LATE = "named", "works", "error without the key", "error after data was read"
GOOD = (NAMED, WORKS)


class Mutation(NamedTuple):
    """A mistake: its kind, and the key and value to set on the command line."""

    kind: str
    key: str
    value: str


class Outcome(NamedTuple):
    """What became of it: one of the constants above, and the error."""

    mutation: Mutation
    result: str
    said: str


def misspelt(word: str, draw: random.Random) -> str:
    """A word with a letter left out or two swapped."""
    at = draw.randrange(1, len(word) - 1)
    if word[at - 1] == word[at] or draw.random() < 0.5:
        return word[:at] + word[at + 1 :]
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def judge(
    mutation: Mutation, run: Callable[[Mutation], None], has_read: Callable[[], bool]
) -> Outcome:
    """Run with a mistake; ``has_read`` says afterwards whether a picture was read."""
    try:
        run(mutation)
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        name = mutation.key.rpartition(".")[2]
        if has_read():
            return Outcome(mutation, LATE, said)
        words = [name, mutation.value] if len(mutation.value) > 3 else [name]
        named = any(word.lower() in said.lower() for word in words)
        return Outcome(mutation, NAMED if named else UNNAMED, said)
    return Outcome(mutation, WORKS, "")


def report(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Counts by kind and result, then every outcome that is not good."""
    counts = Counter((outcome.mutation.kind, outcome.result) for outcome in outcomes)
    for (kind, result), count in sorted(counts.items()):
        yield f"{kind:30} {result:28} {count}"
    good = sum(outcome.result in GOOD for outcome in outcomes)
    yield f"{good} of {len(outcomes)}: an error that names the key before data is read, or it works"
    for outcome in outcomes:
        if outcome.result not in GOOD:
            key, value = outcome.mutation[1:]
            yield f"{key}={value}: {outcome.result}: {outcome.said[:200]}"


def main(about: str, check: Callable[[int, int], list[Outcome]]) -> None:
    """The command line of a check: print its report, and exit with 1 if a mistake ended badly."""
    args = make_parser(about, 200, "mistakes").parse_args()
    found = check(args.count, args.seed)
    print("\n".join(report(found)))
    sys.exit(any(outcome.result not in GOOD for outcome in found))
