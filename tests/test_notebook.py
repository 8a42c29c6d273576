"""The notebook runs from top to bottom, and its file holds no outputs."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples/first_steps.ipynb"


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_file_holds_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not outputs_of(notebook)
    assert not any(cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    # The kernel starts in a folder of its own, and takes this checkout's package.
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = outputs_of(notebook)
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "same features: True" in text and "refused: " in text and "stem.0.0.weight" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
