"""docs/evidence.md names tests that exist."""

import re

from tests.conftest import ROOT


def test_every_test_that_the_page_names_exists():
    page = (ROOT / "docs/evidence.md").read_text()
    named = re.findall(r"`(\S+\.py)::(test_\w+)`", page)
    assert named
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE)
    ]
    assert missing == []
