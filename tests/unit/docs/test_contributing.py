"""What .github/CONTRIBUTING.md and the hooks of pre-commit name is there."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")


def test_every_target_of_make_stands_there_and_no_other() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `make")]
    named = {name for row in rows for name in re.findall(r"`make (\w+)`", row.split("|")[1])}
    targets = re.findall(r"(?m)^([a-z]+):.*## ", (ROOT / "Makefile").read_text("utf-8"))

    assert named == {*targets} - {"help"}


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", PAGE)

    assert links
    assert [link for link in links if not (ROOT / ".github" / link).exists()] == []


def test_the_hooks_are_the_checks_of_make_lint() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    lint = re.findall(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"))
    checks = re.findall(r"\$\(BIN\)/(\w+(?: \w+)?)", lint[0])

    assert {re.sub(r"\.venv/bin/(\w+(?: \w+)?).*", r"\1", hook) for hook in hooks} == {*checks}
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    dev = " ".join(tools["project"]["optional-dependencies"]["dev"])
    assert all(check.split()[0] in dev for check in checks)
