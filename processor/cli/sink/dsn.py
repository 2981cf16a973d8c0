"""The address of the sink's PostgreSQL."""

from processor.cli.common.runner import WrongUse
from processor.settings import Settings

FROM_SETTING = "-"
"""As an option's value: that of the setting."""


def sink_dsn(settings: Settings, given: str = FROM_SETTING) -> str:
    """Return the address. Raises WrongUse if there is none."""
    if given != FROM_SETTING:
        return given
    if settings.sink_dsn is None:
        raise WrongUse(
            "TASKFLOW_SINK_DSN is missing: the PostgreSQL of the sink, such as "
            "postgresql://user:password@host:5432/database. TASKFLOW_SINK_DSN_FILE may name a "
            "file that holds it."
        )
    return settings.sink_dsn.get_secret_value()
