"""The number of threads by cores and load, and the warnings that are not shown."""

import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch

from gram_backbones import threads
from gram_backbones.upstream_warnings import (
    silence_known_warnings,
    silence_printed_lines,
    silence_started_processes,
)


@pytest.mark.parametrize(
    ("machine", "allowed", "load", "processes", "wanted"),
    (
        (8, 8, 0.0, 1, 8),
        (8, 8, 5.2, 1, 3),
        (8, 8, 0.0, 4, 2),
        (8, 8, 20.0, 1, 1),
        (64, 4, 32.0, 1, 2),  # of a busy machine's cores a container gets four
        (2, 2, 2.0, 1, 1),
    ),
)
def test_threads_are_the_cores_that_idle(machine, allowed, load, processes, wanted, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert threads.idle_cores(processes) == wanted


@pytest.fixture
def three_threads(monkeypatch):
    """Threads are chosen to be three, on a machine where torch would take as many."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "idle_cores", lambda processes: 3)
    for name in (threads.VARIABLE, threads._CHOSEN):
        monkeypatch.setenv(name, "")  # what the test sets is undone
        monkeypatch.delenv(name)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_the_variable_is_the_user_s_word(three_threads, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "7")
    assert threads.choose_threads() is None
    threads.resume_threads(2)
    assert torch.get_num_threads() == 4 and os.environ[threads.VARIABLE] == "7"


def test_a_resumed_run_keeps_its_number(three_threads):
    assert "3 threads" in threads.choose_threads()
    assert torch.get_num_threads() == 3 and os.environ[threads.VARIABLE] == "3"
    assert threads.choose_threads() is None  # once a process
    threads.resume_threads(None)
    assert torch.get_num_threads() == 3
    threads.resume_threads(2)
    assert torch.get_num_threads() == 2 and os.environ[threads.VARIABLE] == "2"


def test_listed_warnings_are_hidden_and_others_are_not():
    with warnings.catch_warnings(record=True) as seen:
        silence_known_warnings()
        for text in ("`torch.jit.script` is deprecated. Please switch.", "torch.jit is slow"):
            warnings.warn(text, FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["torch.jit is slow"]
    log, lines = logging.getLogger("torch.fx._symbolic_trace"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    try:
        log.warning("is_fx_tracing will return true for both %s", "kinds")
        log.warning("another")
    finally:
        log.removeHandler(handler)
    assert lines == ["another"]


def test_the_number_of_kernels_is_the_user_s_word(monkeypatch):
    monkeypatch.setenv(threads.KERNELS, "10")
    threads.keep_kernels()
    assert os.environ[threads.KERNELS] == "10"
    monkeypatch.delenv(threads.KERNELS)
    threads.keep_kernels(20)
    assert os.environ[threads.KERNELS] == "20"


def test_started_processes_and_imports_are_quiet_about_what_is_listed(monkeypatch, capsys):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    silence_started_processes()
    code = "import warnings; warn = warnings.warn; warn('`torch.jit.script` is deprecated. Use', "
    code += "FutureWarning); warn('This DataLoader will create 9 workers'); warn('another')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another" in done.stderr and done.stderr.count("Warning") == 1
    with silence_printed_lines():
        print("Could not import OneDL. Skipping OneDL datasets.\nloaded")
    assert capsys.readouterr().out == "loaded\n"
