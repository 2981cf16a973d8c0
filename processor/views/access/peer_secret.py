"""The secret that the view workers share, and where it is."""

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from processor.runtime import private_directory
from processor.settings import Settings

NAME: Final = "views-peer-secret"
_BYTES: Final = 32
_log = logging.getLogger(__name__)


def peer_secret(settings: Settings) -> str | None:
    """TASKFLOW_VIEWS_PEER_SECRET, else what only this user of this machine can read; None if there
    is no place for that: then the workers do not ask each other."""
    if settings.views_peer_secret is not None:
        return settings.views_peer_secret.get_secret_value()
    try:
        return _of_this_user(_folder())
    except (OSError, RuntimeError, ValueError) as error:
        _log.warning(
            "this view worker answers for its own partitions only (%s); where there are several, "
            "give all of them the same TASKFLOW_VIEWS_PEER_SECRET",
            error,
        )
        return None


def _folder() -> Path:
    """Of what a user's programs keep between their runs."""
    given = os.environ.get("XDG_STATE_HOME", "")
    home = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return home / "taskflow"


def _of_this_user(folder: Path) -> str:
    """The secret in `folder`, made if it is not there. Raises OSError, ValueError."""
    path = folder / NAME
    with suppress(FileExistsError):
        private_directory(folder)
        if not path.exists():
            draft = folder / f".{NAME}-{os.getpid()}-{secrets.token_hex(4)}"
            try:
                draft.touch(0o600, exist_ok=False)
                draft.write_text(secrets.token_hex(_BYTES), "ascii")
                path.hardlink_to(draft)  # fails if another worker was faster
            finally:
                draft.unlink(missing_ok=True)
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ValueError(f"{path} can be read or written by other users")
    secret = path.read_text("ascii").strip()
    if len(secret) < 2 * _BYTES:
        raise ValueError(f"{path} holds no secret")
    return secret
