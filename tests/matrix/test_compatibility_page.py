"""docs/compatibility.md is what the rules say, and every rule names a source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from compatibility_page import PAGE, page, section

from exporters.runtimes.compatibility import TARGETS

ROOT = Path(__file__).parents[2]
OUR_FILE = re.compile(r"^(?:exporters|passes|tests)/[\w/]+\.py")


def test_the_page_is_generated_from_the_rules() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_another_rule_changes_the_page() -> None:
    first = TARGETS[0]
    changed = replace(first, checks=(replace(first.checks[0], otherwise="partly"),))
    assert section(changed) != section(first)
    assert section(first) in page()


def test_every_rule_names_a_source_and_our_own_files_exist() -> None:
    sources = [check.source for target in TARGETS for check in target.checks]
    assert all(sources)
    own = [found[0] for source in sources if (found := OUR_FILE.match(source))]
    assert len(own) >= 5
    for path in own:
        assert (ROOT / path).is_file(), path
