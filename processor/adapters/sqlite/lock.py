"""One worker per state directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path

from filelock import FileLock, Timeout

from processor.adapters.sqlite.errors import StateDirInUse, StateDirUnusable


@contextmanager
def state_dir_lock(state_dir: Path) -> Iterator[None]:
    """Hold `state_dir`, made if missing, against other workers.

    Raises StateDirInUse at once if another one holds it. The lock is the kernel's: it ends with
    the process, however that ends. Raises StateDirUnusable if nothing can be written there.
    """
    # Who holds it stands beside the lock: to ask for the lock is to truncate its file.
    holder = state_dir / "worker.pid"
    lock = FileLock(state_dir / "worker.lock", timeout=0)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(f"{getpid()}\n")
    except Timeout:
        raise StateDirInUse(
            f"{state_dir} is in use by the worker with process id {_read(holder)};"
            " give this one a state directory of its own."
        ) from None
    except OSError as error:
        lock.release()
        raise StateDirUnusable(
            f"The state directory {state_dir} cannot be used ({(error.strerror or '').lower()});"
            " name another in TASKFLOW_STATE_DIR."
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        return holder.read_text().strip() or "unknown"
    except OSError:
        return "unknown"
