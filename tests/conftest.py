import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

REFERENCE = Path(__file__).parent / "reference"
# The COCO photographs: below DETECTRON2_DATASETS, or in a folder next to the checkout.
_SHARED = Path(__file__).resolve().parents[2] / "shared/datasets"
DATASETS = next(
    (
        root
        for root in (Path(os.environ.get("DETECTRON2_DATASETS", "datasets")), _SHARED)
        if (root / "coco/annotations/instances_val2017.json").is_file()
    ),
    None,
)
needs_coco = pytest.mark.skipif(
    DATASETS is None, reason="no coco folder below DETECTRON2_DATASETS or next to the checkout"
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def load_reference(name: str):
    """A reference record: figures obtained by running the authors' implementation."""
    return json.loads((REFERENCE / name).read_text())


def check_ended_well(done: subprocess.CompletedProcess) -> None:
    """Fail with the last lines of a process, where its error is, if it ended with one."""
    lines = (done.stdout + "\n--- stderr ---\n" + done.stderr).splitlines()
    assert done.returncode == 0, f"exit code {done.returncode}\n" + "\n".join(lines[-60:])
