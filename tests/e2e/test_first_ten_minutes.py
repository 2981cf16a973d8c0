"""The page of a newcomer's first ten minutes is what the program shows today."""

import difflib

import pytest

from processor.embedded.broker import EmbeddedBroker
from tests.support.newcomer import PAGE, ROLES, WIDTH, record, stable


def test_what_the_page_shows_is_what_a_terminal_shows(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m tests.support.newcomer` writes the page again."""
    kept = stable(PAGE.read_text("utf-8"))
    now = stable(record(monkeypatch, broker.bootstrap))
    assert now == kept, "\n".join(difflib.unified_diff(kept, now, "the page", "today", n=1))


def test_the_page_has_a_part_for_each_role_and_no_table_is_wider_than_a_terminal() -> None:
    page = PAGE.read_text("utf-8")
    for role in ROLES:
        assert f"\n## {role.title}\n" in page
    heads = ("at  ", "id  ", "flow  ", "letter  ", "field  ")
    for block in page.split("```")[1::2]:
        lines = block.strip().splitlines()
        if any(line.startswith(heads) for line in lines[1:3]):
            assert max(map(len, lines[1:])) <= WIDTH, block
