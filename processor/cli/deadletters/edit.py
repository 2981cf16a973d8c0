"""Take the replacement of a dead letter's value from a file or an editor."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from processor.cli.common.options import flow_id_of
from processor.cli.common.runner import Refused, WrongUse
from processor.ops.deadletters import DeadLetterRecord
from processor.ops.redrive import Plan


def key_for(dead_letter: DeadLetterRecord, value: bytes, given: str | None) -> bytes | None:
    """The key that an edited value goes out with: as given, or the flow's that it names."""
    if given is not None:
        return flow_id_of(given).encode()
    return Plan.editing(dead_letter, value).key


def in_editor(value: bytes) -> bytes:
    """What a person makes of it in $EDITOR. Raises Refused."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="taskflow-") as scratch:
        path = Path(scratch) / "letter.json"
        path.write_bytes(value)
        try:
            code = subprocess.call([*shlex.split(editor), str(path)], stdout=sys.stderr)
        except OSError as error:
            raise Refused(f"{editor} could not be started: {error.strerror}.") from None
        if code != 0:
            raise Refused(f"{editor} ended with code {code}; nothing was written.")
        # Editors end a file with a newline, which the codec does not mind; bytes stay as they are.
        return path.read_bytes()


def write_file(path: Path, value: bytes) -> None:
    """Raises WrongUse."""
    try:
        path.write_bytes(value)
    except OSError as error:
        raise WrongUse(f"{path} cannot be written: {error.strerror}.") from None


def read_file(path: Path) -> bytes:
    """Raises WrongUse."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}.") from None
