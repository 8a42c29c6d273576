"""What the default suite leaves out: large models, a grid's further cases, pages of docs/."""

from pathlib import Path

import pytest

from tests.conftest import DOCS, pytest_collection_modifyitems


class Item:
    """As much of a test as the hook asks for."""

    def __init__(self, name, *marks):
        self.path, self.name = Path("test_a.py"), name
        self.originalname = name.partition("[")[0]
        self.marks = set(marks)

    def get_closest_marker(self, name):
        return name if name in self.marks else None

    def add_marker(self, mark):
        self.marks.add(mark.name)


@pytest.mark.parametrize(
    ("items", "left"),
    (
        ([Item("f[1]", "grid"), Item("f[2]", "grid"), Item("g[1]"), Item("g[2]")], "f1 g1 g2"),
        ([Item("f[1]", "grid", "slow"), Item("f[2]", "grid"), Item("f[3]", "grid")], "f2"),
        ([Item("f[aognet_60m]", "grid"), Item("f[1]", "grid"), Item("f[2]", "grid")], "f1"),
    ),
    ids=("all but the first", "the first is slow", "the first is large"),
)
def test_every_grid_keeps_a_case(items, left):
    """Bug: where the first case was slow, the others were left out too."""
    pytest_collection_modifyitems(items)
    kept = (item.name for item in items if "slow" not in item.marks)
    assert " ".join(name.replace("[", "").rstrip("]") for name in kept) == left


def test_pages_of_the_documentation_are_slow():
    page, readme = Item("line:1"), Item("line:1")
    page.path, readme.path = DOCS / "weights.md", DOCS.parent / "README.md"
    pytest_collection_modifyitems([page, readme])
    assert (page.marks, readme.marks) == ({"slow"}, set())
