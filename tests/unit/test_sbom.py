"""The software bill of materials lists all that is locked."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from processor.embedded.jars import locked_jars
from tests.support.ci_scripts import ci_script

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")


@pytest.fixture(scope="module")
def text() -> str:
    module = ci_script("sbom")
    made: str = module.sbom("1.2.3", LOCK)
    assert made == module.sbom("1.2.3", LOCK)
    return made


@pytest.fixture(scope="module")
def document(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    return document


def test_it_is_cyclonedx(text: str) -> None:
    # Late: what it imports makes grammars of URIs for two seconds, in each process.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_every_locked_package_is_there_with_all_its_hashes(document: dict[str, Any]) -> None:
    """Read from the lock in another way than the script does."""
    locked = {
        (name, version): set(re.findall(r"--hash=sha256:([0-9a-f]{64})", rest))
        for name, version, rest in re.findall(
            r"^([A-Za-z0-9._-]+)==(\S+)(.*?)(?=^[A-Za-z]|\Z)", LOCK, re.MULTILINE | re.DOTALL
        )
    }
    assert len(locked) > 50
    listed = {
        (one["name"], one["version"]): {
            hashed["content"]
            for reference in one["externalReferences"]
            for hashed in reference["hashes"]
        }
        for one in document["components"]
        if one["purl"].startswith("pkg:pypi/")
    }
    assert listed == locked
    assert all(listed.values())


def test_every_jar_of_the_embedded_broker_is_there(document: dict[str, Any]) -> None:
    listed = {
        f"{one['group']}:{one['name']}:{one['version']}": [
            hashed["content"] for hashed in one["hashes"]
        ]
        for one in document["components"]
        if one["purl"].startswith("pkg:maven/")
    }
    assert listed == {jar.coordinate: [jar.sha256] for jar in locked_jars()}


def test_it_says_who_needs_what(document: dict[str, Any]) -> None:
    needs = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    ours = document["metadata"]["component"]["bom-ref"]
    assert any(ref.startswith("aiokafka==") for ref in needs[ours])
    assert not any(ref.startswith("aiosignal==") for ref in needs[ours])
    (aiohttp,) = [ref for ref in needs if ref.startswith("aiohttp==")]
    assert any(ref.startswith("aiosignal==") for ref in needs[aiohttp])
    reached, left = set(), [ours]
    while left:
        ref = left.pop()
        if ref not in reached:
            reached.add(ref)
            left += needs[ref]
    assert reached == {ours, *(one["bom-ref"] for one in document["components"])}
