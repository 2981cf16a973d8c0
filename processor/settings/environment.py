"""Read settings from the environment, and say what is wrong with them."""

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource

from processor.errors import TaskflowError
from processor.settings.model import Settings
from processor.settings.values import PREFIX, Expected, variable

FILE: Final = "_FILE"
"""A secret may also stand in a file, which the variable of this ending names."""
SECRET_MAX_BYTES: Final = 64 * 1024


class BadSetting(TaskflowError):
    """A setting has no meaning; nothing was started. One sentence for each, without secrets."""


def load_settings(
    environ: Mapping[str, str] | None = None, *, warn: Callable[[str], None] | None = None
) -> Settings:
    """The settings in `environ` (os.environ if None); an empty value counts as absent.

    A secret may stand in a file instead, which the variable with the ending `_FILE` names.
    `warn` hears one sentence (standard error, if None) for each unknown `TASKFLOW_` name, which
    is ignored: Kubernetes injects such names. Raises BadSetting.
    """
    environ = os.environ if environ is None else environ
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES and name not in SECRET_FILES:
            (warn or _to_stderr)(_unknown(name))
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    given |= _secrets_of_files(environ)
    if garbled := [name for name in VARIABLES if not _is_utf8(name, environ.get(name, ""))]:
        raise BadSetting("\n".join(f"{name} is not UTF-8." for name in garbled))
    source = EnvSettingsSource(Settings, env_ignore_empty=True)
    source.env_vars = {name.lower(): value for name, value in given.items()}
    try:
        return Settings(**source())
    except ValidationError as error:
        sentences = [
            _sentence(dict(problem), environ)
            for problem in error.errors()
            if problem["type"] != "default_factory_not_called"  # only since another one is bad
        ]
        raise BadSetting("\n".join(dict.fromkeys(sentences))) from None


def _secrets_of_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Read the secrets whose files `environ` names, by variable. Raises BadSetting."""
    found: dict[str, str] = {}
    sentences: list[str] = []
    for file_variable, name in SECRET_FILES.items():
        path = environ.get(file_variable)
        if not path:
            continue
        if environ.get(name):
            sentences.append(f"{name} and {file_variable} are both given; keep one of them.")
            continue
        try:
            found[name] = read_secret(Path(path).expanduser())
        except ValueError as error:
            sentences.append(f"{file_variable} is {path!r}, which cannot be used: {error}.")
    if sentences:
        raise BadSetting("\n".join(sentences)) from None
    return found


def read_secret(path: Path) -> str:
    """What a file holds, without the line end that editors leave. Raises ValueError, whose words
    hold nothing of the content."""
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise ValueError((error.strerror or "unreadable").lower()) from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if len(content) > SECRET_MAX_BYTES:
        raise ValueError(f"over {SECRET_MAX_BYTES // 1024} KiB")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("empty")
    return text


def _is_utf8(name: str, value: str) -> bool:
    """Whether a value can be sent and printed; a path may be any bytes."""
    if _names_a_path(VARIABLES[name].annotation):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names_a_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_names_a_path, get_args(annotation)))


def _sentence(problem: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    if not problem["loc"]:
        return f"{problem['msg']}."
    name = str(problem["loc"][0])
    field = VARIABLES[name]
    words = next((note.words for note in field.metadata if isinstance(note, Expected)), "a text")
    if _is_secret(field):
        where = f"{name}{FILE}" if environ.get(f"{name}{FILE}") else name
        return f"{where} must be {words}." if where == name else f"{where} must hold {words}."
    return f"{name} is {environ.get(name, '')!r}, but must be {words}."


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [*VARIABLES, *SECRET_FILES], n=1, cutoff=0)[0]
    return f"{name} is no setting of taskflow and is ignored; the nearest one is {near}."


def _to_stderr(sentence: str) -> None:
    sys.stderr.write(f"warning: {sentence}\n")


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


VARIABLES: Final[Mapping[str, FieldInfo]] = {
    variable(field): info for field, info in Settings.model_fields.items()
}
"""Every variable that is read."""

SECRET_FILES: Final[Mapping[str, str]] = {
    f"{name}{FILE}": name for name, info in VARIABLES.items() if _is_secret(info)
}
"""By the variable that names a file: the secret setting that stands in it."""
