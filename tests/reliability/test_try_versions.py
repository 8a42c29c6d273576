"""The parts of try_versions.py that need no environment of their own."""

import sys

import pytest

from .try_versions import find_python, main, run, run_tests


def test_an_interpreter_that_is_not_here_is_named_and_left_out(capsys):
    assert main(["python3.99:2.6.0"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["python3.99: no such CPython here"]


def test_an_interpreter_is_found_by_path():
    assert find_python(sys.executable) == sys.executable


@pytest.mark.slow
def test_counts_and_failures_come_from_pytest(tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text("import atexit, pytest\natexit.register(print, '1 leak')\n"
                    "def test_a(): pass\ndef test_b(): assert 0\n"
                    "def test_c(): pytest.skip()\n@pytest.fixture\ndef broken(): assert 0\n"
                    "def test_d(broken): pass\n")  # fmt: skip
    counts, failures = run_tests(sys.executable, [str(file)])
    assert counts == "1 | 2 | 1" and len(failures) == 2


def test_a_command_that_fails_ends_with_what_it_said():
    with pytest.raises(RuntimeError, match="ended with 3:\nno such thing"):
        run(sys.executable, "-c", "print('no such thing'); raise SystemExit(3)")
