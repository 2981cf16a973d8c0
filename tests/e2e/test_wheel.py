"""The wheel beside a service that has modules of its own names, in environments of its own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.examples import examples, shown
from tests.support.worker import running_worker

ROOT = Path(__file__).parents[2]
SERVICE = """
import schemas
from processor.client import AuditStream, FlowClient, StepWorker

assert schemas.MINE, "the service's own schemas.py"
assert "/installed/" in FlowClient.__init__.__code__.co_filename
print(schemas.__file__)
"""
CLIENT_MAX_BYTES = 27_000_000
"""What a client installs, before any of it is compiled."""
WITH_OPENSTACK = """
import asyncio
import schemas
import taskflow.engines
from processor.client import AuditStream, FlowClient

async def main():
    async with FlowClient() as client:
        flow = await client.create("beside", running=True)
        await flow.finish()
    async with AuditStream(follow=False) as stream:
        print(schemas.MINE, [str(event.kind) async for event in stream])

asyncio.run(main())
"""


class Environment:
    """A virtual environment, and programs run in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # By the pip of ours, and compiled when it is imported: both take seconds otherwise.
        make = (sys.executable, "-m", "venv", "--without-pip", str(home))
        subprocess.run(make, check=True)
        self.python = str(home / "bin" / "python")
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "TASKFLOW_", "COV_", "VIRTUAL_ENV"))
        }

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd or self.home, env=self.environ, capture_output=True, text=True
        )

    def install(self, *what: str) -> None:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        done = self.run(*pip, "install", "--quiet", "--no-compile", *what)
        assert done.returncode == 0, done.stderr

    @property
    def size_bytes(self) -> int:
        """Of what was installed into it."""
        (packages,) = self.home.glob("lib/python*/site-packages")
        return sum(
            path.stat().st_size
            for path in packages.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        )


@pytest.fixture(scope="module")
def pypi(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where nothing can be installed."""
    folder = tmp_path_factory.mktemp("pypi")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder))
    if subprocess.run((*pip, "typing-inspection"), capture_output=True).returncode != 0:
        pytest.skip("PyPI cannot be reached, so nothing can be installed beside the wheel")


@pytest.fixture(scope="module")
def client_environment(
    wheel: Path, pypi: None, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """The wheel without an extra."""
    environment = Environment(tmp_path_factory.mktemp("client") / "venv")
    environment.install(str(wheel))
    return environment


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
        "views/model/schema.sql",
        "views/http/static/index.html",
        "embedded/jars.lock",
    )
    assert {f"processor/{name}" for name in needed} <= set(names)
    (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        declared = archive.read(entry_points).decode()
    assert "[pytest11]\nprocessor.testing.plugin = processor.testing.plugin\n" in declared + "\n"
    assert "[console_scripts]\ntaskflow = processor.__main__:entry_point\n" in declared + "\n"


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


@pytest.mark.soak
def test_without_an_extra_it_is_a_client_and_small(client_environment: Environment) -> None:
    done = client_environment.run(
        client_environment.python, "-W", "error", "-c", "import processor.client"
    )
    assert done.returncode == 0, done.stderr
    print(f"a client installs {client_environment.size_bytes / 1e6:.1f} MB")
    assert client_environment.size_bytes <= CLIENT_MAX_BYTES


@pytest.mark.soak
def test_without_its_extra_the_program_says_what_to_install(
    client_environment: Environment,
) -> None:
    done = client_environment.run(str(client_environment.home / "bin" / "taskflow"), "worker")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'This needs the extra `cli`, which is not installed: pip install "taskflow-kafka[cli]"\n'
    )


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_beside_openstacks_taskflow_a_client_sends_and_reads(
    client_environment: Environment, broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    client_environment.install("taskflow")
    (tmp_path / "schemas.py").write_text("MINE = True\n")
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path / "state",
        http=None,
    )
    environ = {
        **client_environment.environ,
        "TASKFLOW_BOOTSTRAP_SERVERS": broker.bootstrap,
        "TASKFLOW_TOPIC_PREFIX": prefix,
        "PYTHONPATH": str(tmp_path),
    }
    async with running_worker(settings):
        said = await shown(
            (client_environment.python, "-c", WITH_OPENSTACK), cwd=tmp_path, environ=environ
        )
    assert said == "True ['created', 'started', 'finished']\n"


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_plugin_is_found_where_it_is_installed(wheel: Path, pypi: None, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(f"{wheel}[testing]", "pytest-asyncio")
    service = tmp_path / "service"
    service.mkdir()
    page = (ROOT / "processor" / "docs" / "testing.md").read_text("utf-8")
    for name, code in examples(page, mark="file").items():
        (service / name).write_text(code)
    (service / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")

    done = environment.run(environment.python, "-m", "pytest", "-q", cwd=service)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
