"""Loader workers and ranks that die or hang: errors name them, and none is left."""

import gc
import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset

from gram_backbones import lost_processes
from gram_backbones.cli import classifier, d2, mmdet
from gram_backbones.lost_processes import LostProcessError, guard_loader, naming_lost_processes

needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no SIGCHLD here")


class Numbers(Dataset):
    """Its worker sends a signal to itself when it reads an item."""

    def __init__(self, harm, at=2):
        self.harm, self.at = harm, at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.at:
            time.sleep(0.3)  # the item before is on its way
            os.kill(os.getpid(), self.harm)
        return index


@contextmanager
def signal_blocked(number):
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:  # another thread may get it, and its handler raise here
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def fork(data, workers=1, seconds=30):
    # Bug: a worker that collects an abandoned iterator of another test starts threads for its
    # queues, before ours block SIGTERM, and ends at it. Seen with Python 3.12.
    gc.collect()
    loader = DataLoader(data, num_workers=workers, multiprocessing_context="fork")
    return guard_loader(loader, seconds)


@needs_signals
def test_a_worker_that_dies_is_named():
    """Bug: where it had handed over half a batch, the error was a connection that was reset."""
    said = r"^DataLoader worker \(pid(\(s\))? \d+\) .*(memory was full|exited unexpectedly)$"
    with pytest.raises(LostProcessError, match=said), naming_lost_processes():
        [*fork(Numbers(signal.SIGKILL))]
    assert not multiprocessing.active_children()


@needs_signals
def test_a_worker_that_stops_is_named_and_ended():
    """Bug: Python waited for a stopped worker at its end, for ever."""
    said = r"^DataLoader timed out after 2 seconds; its workers: process \d+ \(stopped\)$"
    with pytest.raises(LostProcessError, match=said), naming_lost_processes(20):
        [*fork(Numbers(signal.SIGSTOP), seconds=2)]
    assert not multiprocessing.active_children()


@needs_signals
def test_a_worker_that_stops_with_half_a_batch_is_named_and_ended():
    """Bug: torch's timeout does not cover shared memory that the worker has to hand over."""
    said = r"^DataLoader worker \(pid \d+\) was stopped, and ended after 1 seconds$"
    with pytest.raises(LostProcessError, match=said), naming_lost_processes(1):
        batches = iter(fork(Numbers(signal.SIGSTOP, at=1)))
        time.sleep(0.6)  # item 0 waits to be handed over, and the worker has stopped
        next(batches)
    assert not multiprocessing.active_children()


def test_a_stopped_worker_is_named_where_torch_s_error_was_lost(monkeypatch):
    """Bug: raised by a signal while Detectron2 logged a broken connection, it went to stderr."""
    watch = lambda self: setattr(self, "said", "DataLoader worker (pid 7) was stopped")  # noqa: E731
    monkeypatch.setattr(lost_processes._StoppedWorkers, "_watch", watch)
    with pytest.raises(LostProcessError, match="pid 7"), naming_lost_processes():
        raise ConnectionResetError("reset by peer")


@needs_signals
def test_watching_workers_does_not_hide_a_death_from_torch():
    """It must not collect them: torch would then wait as long as it waits for a batch."""
    loader = fork(Numbers(signal.SIGKILL, at=1))
    loader.timeout = 5
    with pytest.raises(LostProcessError, match="is killed by signal"), naming_lost_processes():
        batches = iter(loader)
        with signal_blocked(signal.SIGCHLD):  # as by a long operation
            time.sleep(1.5)
        next(batches)
        next(batches)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="senders are unknown here")
def test_a_worker_goes_on_after_another_s_sigterm():
    """Bug: torchrun sends it to workers too, so that a rank ended without its checkpoint."""
    assert [int(batch) for batch in fork(Numbers(signal.SIGTERM))] == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="senders are unknown here")
def test_a_worker_ends_when_its_parent_asks():
    batches = iter(fork(Numbers(signal.SIGCONT)))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


class Large(Dataset):
    """Items that fill a pipe; reading the first one says which process does."""

    def __init__(self, pids):
        self.pids = pids

    def __len__(self):
        return 9

    def __getitem__(self, index):
        if index == 0:
            self.pids.send(os.getpid())
        return bytes(1_000_000)


def be_killed(pids, seconds):
    batches = iter(fork(Large(pids)))
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
    del batches


@needs_signals
@pytest.mark.parametrize("seconds", (0, 1))
def test_a_worker_whose_parent_is_killed_does_not_stay(seconds):
    """Bug: it waited until somebody read its batch, or compared its parent too late."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()
    process = context.Process(target=be_killed, args=(writer, seconds))
    process.start()
    process.join()
    writer.close()
    with suppress(EOFError):  # it had not begun
        pid = reader.recv()
        end = time.monotonic() + 10
        while lost_processes._state(pid) not in ("dead", "state unknown"):
            assert time.monotonic() < end
            time.sleep(0.05)


class Stopping(Dataset):
    """Items that say which process reads them; the last one stops that process."""

    def __init__(self, pids):
        self.pids = pids

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.pids.send((index, os.getpid()))
        if index:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)


def start_two(pids):
    batches = iter(fork(Stopping(pids), 2))
    time.sleep(60)
    del batches


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="states of processes are unknown here")
def test_a_stopped_worker_does_not_keep_those_before_it():
    """Bug: it held open what told them of their parent's death."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()
    process = context.Process(target=start_two, args=(writer,))
    process.start()
    pids = []
    while len(pids) < 2:
        assert reader.poll(30)
        pids.append(reader.recv())
    (_, first), (_, second) = sorted(pids)
    process.kill()
    process.join()
    try:
        end = time.monotonic() + 15
        while lost_processes._state(first) not in ("dead", "state unknown"):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(second, signal.SIGKILL)


def test_a_process_whose_launcher_died_while_it_started_ends(monkeypatch):
    """Bug: Linux sends no signal for a death before it was asked to."""
    dead, sent = SimpleNamespace(is_alive=lambda: False), []
    monkeypatch.setattr(lost_processes.multiprocessing, "parent_process", lambda: dead)
    monkeypatch.setattr(lost_processes.ctypes, "CDLL", lambda _: SimpleNamespace(prctl=print))
    monkeypatch.setattr(lost_processes.sys, "platform", "linux")
    monkeypatch.setattr(lost_processes.os, "kill", lambda *args: sent.append(args))
    lost_processes.end_with_launcher()
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_a_loader_s_own_timeout_stays_and_one_without_workers_has_none():
    assert guard_loader(DataLoader([1], num_workers=1, timeout=7), 60).timeout == 7
    assert guard_loader(DataLoader([1]), 60).timeout == 0


def test_other_errors_stay_as_they_are():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as caught, naming_lost_processes():
        raise error
    assert caught.value is error


def test_a_mistake_in_the_set_up_is_no_lost_process():
    said = "NCCL error: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000"
    with pytest.raises(dist.DistBackendError, match="Duplicate"), naming_lost_processes():
        raise dist.DistBackendError(said)


def test_an_error_of_gloo_becomes_a_sentence(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    said = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
        "20000ms for recv operation to complete"
    )
    with pytest.raises(LostProcessError) as caught, naming_lost_processes():
        raise RuntimeError(said)
    assert str(caught.value) == (
        "rank 0 of 2 has lost another one, which died or did not answer in time: Timed out waiting "
        "20000ms for recv operation to complete"
    )


@pytest.mark.parametrize("text", ("0", "-5", "1.5", "soon"))
@pytest.mark.parametrize(
    "parse",
    (
        lambda options: d2.parse_args(["--config", "x", *options]),
        lambda options: mmdet.train_parser().parse_args(["x", *options]),
        lambda options: classifier.parse_args(["--model", "x", "--data", "x", *options]),
    ),
)
def test_a_timeout_is_a_whole_number_of_seconds(parse, text, capsys):
    with pytest.raises(SystemExit) as ended:
        parse([f"--timeout={text}"])
    assert ended.value.code == 2
    assert f"argument --timeout: {text!r} is not a whole number of" in capsys.readouterr().err
    assert parse(["--timeout", "40"]).timeout == 40
    assert parse([]).timeout is None


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(tmp_path):
    """A sample of ``tests/reliability/check_processes.py``."""
    pytest.importorskip("psutil")
    pytest.importorskip("timm", reason="timm is not installed, which the classifier needs")
    from tests.reliability.check_processes import disturb, make_inputs

    make_inputs(tmp_path, ["classifier"])
    outcome = disturb("classifier", "a rank is killed", tmp_path, random.Random(0))
    assert not outcome.wrong, outcome.output
