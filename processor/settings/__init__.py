"""Settings: environment variables `TASKFLOW_…`, read once and immutable."""

from processor.settings.environment import (
    SECRET_FILES,
    SECRET_MAX_BYTES,
    VARIABLES,
    BadSetting,
    load_settings,
    read_secret,
)
from processor.settings.model import Settings
from processor.settings.values import FAULT, OFF, PREFIX, Address, parse_duration, variable

__all__ = [
    "FAULT",
    "OFF",
    "PREFIX",
    "SECRET_FILES",
    "SECRET_MAX_BYTES",
    "VARIABLES",
    "Address",
    "BadSetting",
    "Settings",
    "load_settings",
    "parse_duration",
    "read_secret",
    "variable",
]
