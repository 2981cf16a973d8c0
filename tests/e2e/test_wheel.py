"""The wheel beside a service that has modules of its own names."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICE = """
import schemas
from processor.client import AuditStream, FlowClient, StepWorker

assert schemas.MINE, "the service's own schemas.py"
assert "/installed/" in FlowClient.__init__.__code__.co_filename
print(schemas.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_installs_one_import_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert wheel.name.startswith("taskflow_kafka-")
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"processor"}
    needed = (
        "py.typed",
        "adapters/sqlite/schema.sql",
        "views/schema.sql",
        "views/static/index.html",
        "embedded/jars.lock",
    )
    assert {f"processor/{name}" for name in needed} <= set(names)


def test_a_service_keeps_its_own_schemas(wheel: Path, tmp_path: Path) -> None:
    installed, service = tmp_path / "installed", tmp_path / "service"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    service.mkdir()
    (service / "schemas.py").write_text("MINE = True\n")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(service), str(installed)))}

    done = subprocess.run(
        (sys.executable, "-c", SERVICE), cwd=service, env=environ, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(service / "schemas.py")
