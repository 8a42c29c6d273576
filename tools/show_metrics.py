#!/usr/bin/env python
"""Print box and mask AP of the last evaluation in a metrics.json of Detectron2."""

import argparse
import json
from pathlib import Path

from tabulate import tabulate

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path, help="metrics.json of a run")
    lines = map(json.loads, parser.parse_args().metrics.read_text().splitlines())
    merged = {key: value for line in lines for key, value in line.items()}
    keys = ("AP", "AP50", "AP75")
    rows = [
        [title, *(merged[f"{task}/{key}"] for key in keys)]
        for task, title in (("bbox", "box"), ("segm", "mask"))
        if f"{task}/AP" in merged
    ]
    print(tabulate(rows, headers=["", *keys], floatfmt=".1f"))
