"""The examples in docstrings."""

import doctest
from importlib import import_module
from pkgutil import walk_packages

import pytest

import gram_backbones

ADAPTERS = ("d2", "mmdet", "timm", "classification", "__main__")
MODULES = [
    m.name
    for m in walk_packages(gram_backbones.__path__, "gram_backbones.")
    if m.name.split(".")[1] not in ADAPTERS
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert not found.failed


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = map(import_module, MODULES)
    assert sum(bool(test.examples) for m in modules for test in finder.find(m)) >= 6
