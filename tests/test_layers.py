"""Imports run one way: the contracts in pyproject.toml, which docs/architecture.md explains."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is not installed")


def test_the_layers_are_kept():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 kept, 0 broken" in done.stdout
