"""Python blocks of README.md and docs/ are tests; what comes before a block in a page has been run.

``<!-- skip: next "needs COCO" -->`` before a block leaves it out.
"""

import pytest

sybil = pytest.importorskip("sybil", reason="sybil is not installed")

from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser  # noqa: E402

pytest_collect_file = sybil.Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md"]
).pytest()
