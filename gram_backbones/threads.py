"""How a process computes on CPUs: its number of threads, and the kernels that it keeps.

torch starts one thread a core. Where other processes compute too, its threads wait for each other:
the demo took 10.6 s an iteration with torch's default beside another load, and 0.68 s with one
thread. So a process takes as many threads as there are cores that idle.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "OMP_NUM_THREADS"
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_CHOSEN = "GRAM_BACKBONES_CHOSEN_THREADS"  # the same number, if it was chosen here


def idle_cores(processes: int = 1) -> int:
    """Cores that each of ``processes`` may keep busy, at least 1.

    The load counts all cores of the machine, of which this process may be allowed only some.

    Examples:
        >>> idle_cores(processes=10**6)
        1
    """
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    idle = allowed * (1 - load / machine)
    return max(1, round(idle) // processes)


def choose_threads(processes: int = 1) -> str | None:
    """Set the number of threads of this process and of those that it starts.

    ``OMP_NUM_THREADS`` is the user's own word: where it is set, nothing happens. Call this before
    torch is imported, which reads the variable then; afterwards it only lowers torch's number.

    Args:
        processes: number of processes that compute side by side.

    Returns:
        A line that says what was chosen, or None.

    Examples:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, OMP_NUM_THREADS="1"):
        ...     choose_threads() is None
        True
    """
    if VARIABLE in os.environ:
        return None
    threads = idle_cores(processes)
    os.environ[VARIABLE] = os.environ[_CHOSEN] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(min(threads, torch.get_num_threads()))
    noun = "thread" if threads == 1 else "threads"
    return f"Computing with {threads} {noun} per process on CPUs; {VARIABLE} overrides this."


def keep_kernels(number: int = 4096) -> None:
    """Let oneDNN keep this many compiled kernels, unless the user has set their number.

    It keeps 1024 by default, and drops the one that was used longest ago. A training step with
    AOGNet-12M needs about as many, for one image size: beyond that every step compiles them anew.
    Call this before torch convolves for the first time.

    Args:
        number: one for each shape of a convolution, its gradients and its layouts.

    Examples:
        >>> keep_kernels()
        >>> int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) > 0
        True
    """
    os.environ.setdefault(KERNELS, str(number))


def resume_threads(threads: int | None) -> None:
    """Go on with the number of threads that a resumed run began with, if it was chosen here.

    Sums on CPUs depend on it in their last bits, and a resumed run shall repeat one that was not
    stopped.

    Args:
        threads: the number, or None for a run that did not note it.

    Examples:
        >>> resume_threads(None)
    """
    if threads and VARIABLE in os.environ and os.environ[VARIABLE] == os.environ.get(_CHOSEN):
        os.environ[VARIABLE] = os.environ[_CHOSEN] = str(threads)
        sys.modules["torch"].set_num_threads(threads)
