"""The examples in docstrings."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import gram_backbones
from gram_backbones import registry

ROOT = Path(gram_backbones.__file__).parent
ADAPTERS = ("d2", "mmdet", "timm", "classification", "__main__")
PATHS = [path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py")]
MODULES = [
    ".".join(("gram_backbones", *parts))
    for parts in sorted(PATHS)
    if parts[0] not in ADAPTERS and parts[-1] != "__init__"
]


def _import_modules():
    """The modules, and what those say that ask for an extra of the package."""
    found, refused = [], {}
    for name in MODULES:
        try:
            found.append(import_module(name))
        except ImportError as error:
            if "gram-backbones[" not in str(error):
                raise
            refused[name] = str(error)
    return found, refused


def _find_examples(modules):
    """The docstrings with examples, by the full names of what they document."""
    finder, tests = doctest.DocTestFinder(), []
    for module in modules:
        tests += finder.find(module)
        for name, value in vars(module).items():
            # One by one: in a module, doctest passes over what a decorator wrapped (contexts,
            # caches, dispatchers).
            if callable(value) and getattr(value, "__module__", None) == module.__name__:
                tests += finder.find(value, f"{module.__name__}.{name}", module)
    tests = sorted((test for test in tests if test.examples), key=lambda test: test.name)
    # A class that is also another's attribute counts once, under its own, shorter name.
    once = {test.docstring: test for test in reversed(tests)}
    return {test.name: test for test in once.values()}


FOUND, REFUSED = _import_modules()
EXAMPLES = _find_examples(FOUND)


@pytest.mark.parametrize("name", [*sorted(EXAMPLES), *REFUSED])
def test_examples_of_docstrings(name, monkeypatch):
    if name in REFUSED:
        pytest.skip(REFUSED[name])
    monkeypatch.setattr(registry, "_FAMILIES", [*registry._FAMILIES])  # one registers a family
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    result = runner.run(EXAMPLES[name], out=report.append, clear_globs=False)
    assert result.attempted
    said = "".join(report)
    if missing := re.search(r"ImportError: (.*gram-backbones\[.*)", said):
        pytest.skip(missing[1])
    assert not result.failed, said


@pytest.mark.parametrize("name", gram_backbones.__all__)
def test_what_the_package_exports_has_an_example(name):
    value = getattr(gram_backbones, name)
    assert f"{value.__module__}.{value.__qualname__}" in EXAMPLES
