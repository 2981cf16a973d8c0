"""Read profiles: the settings of several clusters by name, in one file.

    [billing-prod]
    bootstrap_servers = "kafka-1:9093,kafka-2:9093"
    topic_prefix = "billing"
    sasl_password_file = "/run/secrets/kafka"

A key is a variable without its `TASKFLOW_`, in lower case. A profile holds no secret, only the name
of a file that does.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from processor.settings.environment import SECRET_FILES, VARIABLES, BadSetting
from processor.settings.values import PREFIX

FILE_VARIABLE: Final = "TASKFLOW_PROFILES"
"""Names the file."""
PROFILE_VARIABLE: Final = "TASKFLOW_PROFILE"
"""Names the profile, as `--profile` does."""


def profiles_file(environ: Mapping[str, str]) -> Path:
    """TASKFLOW_PROFILES, or `taskflow/profiles.toml` in the user's configuration (XDG)."""
    if named := environ.get(FILE_VARIABLE):
        return Path(named).expanduser()
    xdg = Path(environ.get("XDG_CONFIG_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".config") / "taskflow" / "profiles.toml"


def load_profile(path: Path, name: str) -> dict[str, str]:
    """The variables of profile `name`. Raises BadSetting."""
    try:
        profiles = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise BadSetting(f"Profiles are read from {path}, which cannot be read: {why}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path} is not TOML: {error}.") from None
    profile = profiles.get(name)
    if not isinstance(profile, dict):
        there = ", ".join(key for key, value in profiles.items() if isinstance(value, dict))
        raise BadSetting(f"{path} has no profile {name!r}; it has {there or 'none'}.")
    return {_variable(path, name, key): _text(value) for key, value in profile.items()}


def apply_profile(environ: dict[str, str] | os._Environ[str], name: str) -> None:
    """Set what profile `name` says and `environ` does not. Raises BadSetting."""
    profile = load_profile(profiles_file(environ), name)
    for variable, value in profile.items():
        secret = SECRET_FILES.get(variable)
        if not environ.get(variable) and not (secret and environ.get(secret)):
            environ[variable] = value


def _variable(path: Path, profile: str, key: str) -> str:
    variable = PREFIX + key.upper()
    if variable in SECRET_FILES.values():
        raise BadSetting(
            f"Profile {profile!r} in {path} holds a secret, {key}; put it into a file of its own, "
            f"and name that by {key}_file."
        )
    names = [*VARIABLES, *SECRET_FILES]
    if variable not in names:
        near = difflib.get_close_matches(variable, names, n=1, cutoff=0)[0]
        raise BadSetting(
            f"Profile {profile!r} in {path} has {key}, which is no setting; the nearest one is "
            f"{near.removeprefix(PREFIX).lower()}."
        )
    return variable


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
