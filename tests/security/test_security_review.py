"""docs/security.md says which test shows each claim: every one of them must be there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
TEXT = (HOME / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<test>\w+))?`|`::(?P<same>\w+)`")


@cache
def defined_in(file: str) -> frozenset[str]:
    tree = ast.parse((HOME / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def cited() -> set[tuple[str, str]]:
    """``::name`` is a test of the file that was named last."""
    found, file = set(), ""
    for match in NAMED.finditer(TEXT):
        file = match["file"] or file
        if test := match["test"] or match["same"]:
            found.add((file, test))
    return found


def test_every_test_that_the_review_names_is_there() -> None:
    missing = [f"{file}::{test}" for file, test in sorted(cited()) if test not in defined_in(file)]
    assert missing == []
    assert len(cited()) > 100


def test_every_claim_names_a_test() -> None:
    """A claim is a list item above "What is not protected"."""
    claims = TEXT.partition("\n## What is not protected")[0].partition("\n## Claims")[2]
    items = re.split(r"\n(?=- )", claims)
    bare = [item.strip()[:80] for item in items if item.startswith("- ") and not NAMED.search(item)]
    assert bare == [] and len([item for item in items if item.startswith("- ")]) > 40


def test_every_security_test_is_in_the_review() -> None:
    here = {
        (file.relative_to(HOME).as_posix(), test)
        for file in (HOME / "tests" / "security").glob("test_*.py")
        for test in defined_in(file.relative_to(HOME).as_posix())
        if test.startswith("test_") and file.name != Path(__file__).name
    }
    assert sorted(here - cited()) == []
