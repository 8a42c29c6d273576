"""Python blocks of README.md and docs/ are tests; what comes before a block in a page has been run.

``<!-- skip: next "needs COCO" -->`` before a block leaves it out. The page of a framework
that is not installed is left out.
"""

from importlib.util import find_spec

PAGES = {"docs/detectron2.md": "detectron2", "docs/mmdetection.md": "mmdet"}
collect_ignore = [page for page, framework in PAGES.items() if find_spec(framework) is None]

try:
    from sybil import Sybil
    from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
except ImportError:  # only these blocks are left out
    collect_ignore_glob = ["*.md"]
else:
    pytest_collect_file = Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md"]
    ).pytest()
