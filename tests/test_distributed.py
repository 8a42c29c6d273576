"""Several processes: they agree, and no thread of gloo outlives their group."""

import subprocess
import sys
from pathlib import Path

import pytest

from gram_backbones import distributed
from gram_backbones.distributed import ProcessesDifferError, require_same
from tests.conftest import check_ended_well

# One process is enough for gloo to start its threads, and for DDP to refer to the group.
TRAIN = """
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
{imports}

def train():
    model = DistributedDataParallel(nn.Linear(2, 1))
    model.itself = model
    model(torch.ones(1, 2)).sum().backward()

def threads():
    from pathlib import Path
    return [(t / "comm").read_text() for t in Path("/proc/self/task").iterdir()]

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo", init_method={url!r}, rank=0, world_size=1)
    {start}
    train()
    assert any("gloo" in name for name in threads())
    {end}()
"""
ENDS = {
    "torch": ("from gram_backbones.distributed import end_processes", "pass", "end_processes"),
    "detectron2": (
        "from detectron2.utils import comm\n"
        "from gram_backbones.d2.engine import end_launched_processes",
        "comm.create_local_process_group(1); comm._get_global_gloo_group()",
        "end_launched_processes",
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from /proc")
@pytest.mark.parametrize("launcher", ("torch", pytest.param("detectron2", marks=pytest.mark.slow)))
def test_no_thread_of_gloo_outlives_the_group(launcher, tmp_path, check_gloo_ended):
    """Bug: one that still let go of a tensor aborted the process after its last line, now and then.

    It waits for the interpreter's lock, which in a shutdown ends the thread, and C++ the process.
    """
    if launcher == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    imports, start, end = ENDS[launcher]
    script = tmp_path / "train.py"
    url = f"file://{tmp_path}/group"
    script.write_text(TRAIN.format(imports=imports, start=start, end=end, url=url))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    check_ended_well(done)
    check_gloo_ended()


def test_processes_that_differ_are_listed_by_rank(monkeypatch):
    def gather(values, own):
        values[:] = [own, 5]

    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(distributed.dist, name, lambda value=value: value)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    require_same("the iteration", 5)
    with pytest.raises(ProcessesDifferError, match=r"the iteration differs .* by rank: \[3, 5\]"):
        require_same("the iteration", 3)
