"""All checks of this folder, two at a time: ``bash tools/test.sh --reliability``.

Options are passed on to each check. One that fails does not stop the others.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

LONGEST = ("check_long_runs", "check_weight_files", "check_processes")  # these begin first


def run(check: str, options: list[str], running: list[subprocess.Popen]) -> tuple[int, float]:
    """Run a check, with its name before each line of its output; its exit code and minutes."""
    start = time.monotonic()
    command = [sys.executable, "-u", "-m", f"tests.reliability.{check}", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that it is ended with all that it has started
    ) as process:
        running.append(process)
        for line in process.stdout:
            print(f"{check}: {line}", end="", flush=True)
    return process.returncode, (time.monotonic() - start) / 60


def end(running: list[subprocess.Popen]) -> None:
    """Interrupt what runs, so that it cleans up, and kill what is left after 20 seconds."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        until = time.monotonic() + 20
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(0.1)


def main(options: list[str]) -> int:
    """Run all checks, and print a table of their exit codes and times; 1 if one failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    found = sorted(file.stem for file in Path(__file__).parent.glob("check_*.py"))
    checks = [*LONGEST, *(check for check in found if check not in LONGEST)]
    running: list[subprocess.Popen] = []
    with ThreadPoolExecutor(2) as pool:
        futures = {check: pool.submit(run, check, options, running) for check in checks}
        try:
            results = {check: future.result() for check, future in futures.items()}
        except BaseException:  # nothing that was started stays
            pool.shutdown(wait=False, cancel_futures=True)
            end(running)
            raise
    for check, (code, minutes) in results.items():
        print(f"{check:22} {minutes:6.1f} min  {f'exit code {code}' if code else 'passed'}")
    print(f"all of them {(time.monotonic() - start) / 60:12.1f} min")
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
