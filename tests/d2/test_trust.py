"""Detectron2's resume: nothing in a checkpoint is run, whatever its extension."""

import pickle

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from gram_backbones.d2 import GramCheckpointer
from gram_backbones.weights.files import WeightError


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("suffix", ("pth", "pkl", "pyth"))
def test_code_runs_only_in_a_trusted_checkpoint(suffix, tmp_path):
    """Bug: Detectron2 unpickles what last_checkpoint names if it ends with .pkl."""
    mark, model = tmp_path / "mark", torch.nn.Linear(2, 1)
    content = {"model": dict(model.state_dict()), "hook": Hostile(mark)}
    if suffix == "pkl":
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {}, "hook": Hostile(mark)}))
    else:
        torch.save(content, tmp_path / f"a.{suffix}")
    (tmp_path / "last_checkpoint").write_text(f"a.{suffix}")
    checkpointer = GramCheckpointer(model, str(tmp_path))
    with pytest.raises(WeightError, match=r"needs posix\.mkdir.*--trust-checkpoint"):
        checkpointer.resume_or_load("", resume=True)
    assert not mark.exists()
    if suffix == "pth":
        checkpointer = GramCheckpointer(model, str(tmp_path))
        checkpointer.trust = True
        checkpointer.resume_or_load("", resume=True)
        assert mark.exists()
