import json
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def load_reference(name: str):
    """A reference record that lies beside the checkout, or a skip that says what is missing."""
    path = SHARED / "reference" / "aognet" / name
    if not path.is_file():
        pytest.skip(f"reference record {name} is not beside this checkout")
    return json.loads(path.read_text())
