import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gram_backbones import atomic

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
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


# Models that others stand for in the default suite, as models and configs name them.
LARGE = re.compile(r"aognet_12m[-_.\]]|40m|60m|dgnet[-_]?(r34|r101|x50|regnetx)")


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items):
    """Slow are tests of large models, the cases of a grid after the first, and the pages of docs/.

    Files with slow tests come first: one that starts last leaves the other cores idle.
    """
    begun = set()
    for item in items:
        grid = (item.path, getattr(item, "originalname", None))
        if LARGE.search(item.name) or grid in begun or item.path.is_relative_to(DOCS):
            item.add_marker(pytest.mark.slow)
        elif item.get_closest_marker("grid") and not item.get_closest_marker("slow"):
            begun.add(grid)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Images are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def fill_disk():
    """A function that lets the disk be full where a file is written next."""
    part = f"{atomic._HOST}-{os.getpid()}.part"
    return lambda path: path.with_name(f".{path.stem}.{part}{path.suffix}").symlink_to("/dev/full")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_scope(monkeypatch):
    """A runner of MMEngine leaves its scope to the next test, where no detector is found then."""
    if registry := sys.modules.get("mmengine.registry"):
        scopes = registry.DefaultScope
        monkeypatch.setattr(scopes, "_instance_dict", scopes._instance_dict.copy())


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The project's wheel, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--target", folder, ROOT]
    check_ended_well(subprocess.run(command, capture_output=True, text=True))
    return folder


def load_reference(name: str):
    """A reference record: figures obtained by running the authors' implementation."""
    return json.loads((REFERENCE / name).read_text())


# Every process with this on its path tells, when its interpreter starts to shut down, its threads.
_TELL_THREADS = """
import atexit, os
from pathlib import Path

def tell():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    Path(__file__).with_name(f"{os.getpid()}.threads").write_text("\\n".join(names))

atexit.register(tell)
"""


@pytest.fixture
def check_gloo_ended(tmp_path_factory, monkeypatch):
    """A function that fails if a process started in the test ended with a thread of gloo.

    One that is left can abort the interpreter's end.
    """
    if not Path("/proc/self/task").is_dir():
        return lambda: None
    folder = tmp_path_factory.mktemp("threads")
    (folder / "sitecustomize.py").write_text(_TELL_THREADS)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    def check() -> None:
        told = [file.read_text() for file in folder.glob("*.threads")]
        assert told and not [names for names in told if "gloo" in names]

    return check


def check_ended_well(done: subprocess.CompletedProcess) -> None:
    """Fail with the last lines of a process, where its error is, if it ended with one."""
    lines = (done.stdout + "\n--- stderr ---\n" + done.stderr).splitlines()
    assert done.returncode == 0, f"exit code {done.returncode}\n" + "\n".join(lines[-60:])
