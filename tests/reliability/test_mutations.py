"""What counts as a good end of a run with a mistake, and a few mistakes that the checks draw."""

import pytest

from .mutations import GOOD, LATE, NAMED, UNNAMED, WORKS, Mutation, judge, report

MISTAKE = Mutation("out of range", "SOLVER.MAX_ITER", "-1")


def run(error):
    def raise_it(mutation):
        if error:
            raise error

    return raise_it


@pytest.mark.parametrize(
    ("error", "has_read", "result"),
    (
        (ValueError("MAX_ITER is -1"), False, NAMED),
        (SystemExit("train: max_iter is -1"), False, NAMED),
        (ValueError("MAX_ITER is -1"), True, LATE),
        (AssertionError("sizes"), False, UNNAMED),
        (None, True, WORKS),
    ),
)
def test_an_error_counts_if_it_names_the_key_before_data_is_read(error, has_read, result):
    outcome = judge(MISTAKE, run(error), lambda: has_read)
    assert outcome.result == result
    lines = list(report([outcome]))
    assert (f"{int(result in GOOD)} of 1" in lines[1]) and (len(lines) == 3) == (result not in GOOD)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), (("detectron2", "d2"), ("mmdet", "mmdet")))
def test_mistakes_in_configs_are_named_before_data_is_read(framework, name):
    """A sample; check_d2_configs.py and check_mmdet_configs.py take 200."""
    pytest.importorskip(framework)
    module = __import__(f"tests.reliability.check_{name}_configs", fromlist=["check"])
    outcomes = module.check(3, seed=4)
    assert [outcome for outcome in outcomes if outcome.result not in GOOD] == []
    assert len({outcome.mutation for outcome in outcomes}) == 3
