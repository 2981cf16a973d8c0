"""Write a software bill of materials in CycloneDX 1.6: `sbom.py FILE`.

It lists what requirements.lock installs, with who needs it, and the jars of the embedded broker,
each with all hashes that it may have. The same locks give the same bytes.
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    XsUri,
)
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from processor.embedded.jars import locked_jars

ROOT: Final = Path(__file__).parents[1]
NAME: Final = "taskflow-kafka"


class LockedPackage:
    """One package of requirements.lock; `via` are the names of those that need it."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.sha256: list[str] = []
        self.via: set[str] = set()


def locked_packages(lock: str) -> list[LockedPackage]:
    """What uv wrote into a lock file, one entry for each `name==version`."""
    packages: list[LockedPackage] = []
    for line in lock.splitlines():
        text = line.strip(" \\")
        if line[:1].isalnum():
            name, _, version = text.partition(";")[0].strip().partition("==")
            packages.append(LockedPackage(name, version))
        elif text.startswith("--hash=sha256:"):
            packages[-1].sha256.append(text.removeprefix("--hash=sha256:"))
        elif text.startswith("#") and packages:
            needed_by = text.lstrip("# ").removeprefix("via").split()
            packages[-1].via.update(needed_by[:1])
    return packages


def sbom(version: str, lock: str) -> str:
    """The document, in JSON."""
    root = Component(
        name=NAME,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=NAME,
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
    )
    packages = locked_packages(lock)
    components = {package.name: _of_package(package) for package in packages}
    jars = list(_of_jars())
    bom = Bom(
        components=[*components.values(), *jars],
        serial_number=uuid5(NAMESPACE_URL, f"pkg:pypi/{NAME}@{version}#{lock}"),
    )
    bom.metadata.component = root
    bom.metadata.timestamp = None  # type: ignore[assignment]
    needs: dict[str, list[Component]] = {}
    for package in packages:
        for name in package.via:
            needs.setdefault(name, []).append(components[package.name])
    bom.register_dependency(root, [*needs.pop("taskflow", []), *needs.pop(NAME, []), *jars])
    for name, needed in needs.items():
        bom.register_dependency(components[name], needed)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _of_package(package: LockedPackage) -> Component:
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{package.name}=={package.version}",
        purl=PackageURL("pypi", name=package.name, version=package.version),
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION,
                url=XsUri(f"https://pypi.org/project/{package.name}/{package.version}/"),
                comment="Any one of these files.",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in package.sha256],
            )
        ],
    )


def _of_jars() -> Iterator[Component]:
    for jar in locked_jars():
        group, artifact, version = jar.coordinate.split(":")
        yield Component(
            group=group,
            name=artifact,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=jar.coordinate,
            purl=PackageURL("maven", namespace=group, name=artifact, version=version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=jar.sha256)],
        )


def main(file: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    file.write_text(sbom(version, lock), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
