"""Weight files that were damaged or made to run code: ``bash tools/test.sh --reliability``.

``python -m tests.reliability.check_weight_files --count 5000 --seed 5000`` does part of the files:
each has a seed of its own, so that parts add up to the whole.
"""

import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gram_backbones.weights.files import WeightError, read_weight_file
from gram_backbones.weights.pickled import read_checkpoint
from tests.weights.exploits import write_exploits
from tests.weights.fuzz import fuzz

from .arguments import make_parser


def check_exploits(step: int = 1) -> Counter:
    """How reading every ``step``-th exploit ended; raises if one left its mark."""
    outcomes: Counter = Counter()
    with TemporaryDirectory() as name:
        mark = Path(name, "mark")
        for exploit, file in islice(write_exploits(Path(name), str(mark)), 0, None, step):
            for reader in (read_weight_file, read_checkpoint):
                try:
                    reader(file)
                    outcomes[f"{reader.__name__}: nothing hostile was read"] += 1
                except WeightError:
                    outcomes[f"{reader.__name__}: refused"] += 1
                if mark.exists():
                    raise AssertionError(f"{reader.__name__} ran {exploit}")
    return outcomes


def main() -> None:
    args = make_parser(__doc__, 20_000, "mutated files").parse_args()
    torch.set_num_threads(1)
    print("exploits", dict(check_exploits()), flush=True)
    outcomes, slowest, largest = fuzz(args.count, args.seed)
    print(f"mutated files {args.seed} to {args.seed + args.count - 1}", dict(outcomes))
    print(f"longest {slowest:.2f} s, most memory {largest / 2**20:.0f} MB above the start")


if __name__ == "__main__":
    sys.exit(main())
