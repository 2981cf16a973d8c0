"""The directory of an embedded broker: its lock, configuration and format."""

import asyncio
import base64
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from processor.embedded.environment import java_environment, usable
from processor.embedded.errors import DataDirInUse
from processor.runtime import private_directory

# Longer than the supervisor's grace: a start right after a kill -9 waits long enough.
LOCK_PATIENCE_S = 5.0

FEATURES = Path(__file__).with_name("bootstrap.checkpoint")
"""The levels of Kafka's features (metadata.version, transaction.version, …) in a new cluster, as a
snapshot of KRaft's log; `python -m processor.embedded lock` has Kafka's tool write it."""

# Of what the tool writes; a log directory without its own id would get one at the first start.
META_PROPERTIES = """\
version=1
cluster.id={cluster_id}
node.id={node_id}
directory.id={directory_id}
"""

# A broker for one machine. Paths are relative to the directory, which is the JVM's working
# directory: properties files are Latin-1 and a comma would split log.dirs.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=logs

# There is no broker to replicate to.
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Topics are made on purpose, and the internal ones are small.
auto.create.topics.enable=false
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1

# No member waits for a second one, a dead one may be noticed soon, and so may an
# abandoned transaction (10 s between looks otherwise).
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

# After a kill the controller refuses the new run until the session of the old one is over:
# it then answered after 11.5 s with the usual 9 s of session, after 4.5 s with these 3 s.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# Compaction and retention that can be watched, in little memory (128 MB of it otherwise).
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.io.buffer.size=262144
log.cleaner.backoff.ms=1000
# An index is mapped, a sparse file as long as this, and Linux reads ahead when its first page is
# written: up to 10 MiB of zeros as Kafka has it, 2.5 ms where the disk's read-ahead is 8 MiB. The
# markers of all transactions wait meanwhile: with 64 partitions for up to 4 s.
log.index.size.max.bytes=1048576
log.retention.check.interval.ms=10000

num.network.threads=2
num.io.threads=4
background.threads=2
"""

LOG4J2_PROPERTIES = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that this process holds, and every process that inherits `lock_fd` with it."""

    path: Path
    lock_fd: int
    temporary: bool

    @property
    def log(self) -> Path:
        return self.path / "broker.log"

    def configure(self, *, port: int, controller_port: int, properties: Mapping[str, str]) -> None:
        """Write what the broker is started with; `properties` are its own, over ours."""
        (self.path / "tmp").mkdir(exist_ok=True)
        (self.path / "log4j2.properties").write_text(LOG4J2_PROPERTIES, "ascii")
        ours = SERVER_PROPERTIES.format(port=port, controller_port=controller_port)
        theirs = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.path / "server.properties").write_text(ours + theirs, "ascii")

    def format(self, cluster_id: str, node_id: int) -> None:
        """Make it a Kafka log directory of that cluster's node, unless it is one of any.

        Writes what Kafka's tool does, without its JVM: the ids of cluster and directory, and the
        levels at which the features start, as an operator's cluster has them.
        """
        logs = self.path / "logs"
        meta = logs / "meta.properties"
        if meta.exists():
            return
        logs.mkdir(exist_ok=True)
        (logs / FEATURES.name).write_bytes(FEATURES.read_bytes())
        # Last and at once: a directory that has it is taken for formatted.
        unfinished = self.path / "meta.properties.new"
        meta_properties = META_PROPERTIES.format(
            cluster_id=cluster_id, node_id=node_id, directory_id=new_kafka_uuid()
        )
        unfinished.write_text(meta_properties, "ascii")
        unfinished.replace(meta)


def features_checkpoint(java: Sequence[str], scratch: Path) -> bytes:
    """`bootstrap.checkpoint` as Kafka's own tool writes it into `scratch`, an empty directory.

    `java` is the JVM with its classpath. Blocks for about a second. Raises CalledProcessError.
    """
    directory = Directory(scratch, lock_fd=-1, temporary=True)
    directory.configure(port=1, controller_port=2, properties={})
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={new_kafka_uuid()}"]
    subprocess.run(
        [*java, *tool, "--config=server.properties"],
        cwd=scratch,
        env=java_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return (scratch / "logs" / FEATURES.name).read_bytes()


@asynccontextmanager
async def open_directory(path: Path | None) -> AsyncIterator[Directory]:
    """Hold `path`, made if missing, or a temporary directory that is removed at the end.

    Raises DirectoryUnusable, and DataDirInUse if another broker holds it for longer than
    LOCK_PATIENCE_S.
    """
    temporary = path is None
    with usable(path or Path(tempfile.gettempdir()), "TASKFLOW_STATE_DIR" if path else "TMPDIR"):
        home = _made(path)
        # flock belongs to the open file, so the JVM that inherits it holds it as long as it lives,
        # whatever becomes of us.
        lock_fd = os.open(home / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        await _take(lock_fd, home)
        yield Directory(home, lock_fd, temporary)
    finally:
        os.close(lock_fd)
        if temporary:
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


def _made(path: Path | None) -> Path:
    if path is None:
        return Path(tempfile.mkdtemp(prefix="taskflow-broker-"))
    private_directory(path)
    return path.absolute()


async def _take(lock_fd: int, home: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(lock_fd, 20, 0).decode("ascii", "replace").strip()
                raise DataDirInUse(
                    f"{home} is in use by the embedded broker of process {holder}; "
                    "stop that one or name another directory."
                ) from None
            await asyncio.sleep(0.1)
        else:
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
            return


def new_kafka_uuid() -> str:
    """A random UUID as Kafka writes it, which does not begin like an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))[0] == "-":
        pass
    return text
