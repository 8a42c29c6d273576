"""Python blocks of README.md and docs/ are tests; what comes before a block in a page has been run.

``<!-- skip: next "needs COCO" -->`` before a block leaves it out. The page of a framework
that is not installed is left out, and a block is skipped that asks for an extra of the package.
Where all tests run, the blocks of docs/ are slow, see tests/conftest.py.
"""

from importlib.util import find_spec
from unittest import SkipTest

PAGES = {"docs/detectron2.md": "detectron2", "docs/mmdetection.md": "mmdet"}
collect_ignore = [page for page, framework in PAGES.items() if find_spec(framework) is None]

try:
    from sybil import Sybil
    from sybil.evaluators.python import PythonEvaluator
    from sybil.parsers.markdown import CodeBlockParser, SkipParser
except ImportError:  # only these blocks are left out
    collect_ignore_glob = ["*.md"]
else:

    class _Evaluator(PythonEvaluator):
        def __call__(self, example):
            try:
                return super().__call__(example)
            except ImportError as error:
                if "gram-backbones[" in str(error):
                    raise SkipTest(str(error)) from error
                raise

    pytest_collect_file = Sybil(
        parsers=[CodeBlockParser("python", _Evaluator()), SkipParser()],
        patterns=["README.md", "docs/*.md"],
    ).pytest()
