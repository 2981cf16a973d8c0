"""Settings: environment variables `TASKFLOW_…`, read once and immutable."""

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, get_args

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from processor.contract.topics import SPECS, Topics
from processor.errors import TaskflowError

PREFIX: Final = "TASKFLOW_"
OFF: Final = "off"

_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SECOND_MS, _MINUTE_MS, _HOUR_MS, _DAY_MS = list(_UNIT_MS.values())[1:]
FILE: Final = "_FILE"
"""A secret may also stand in a file, which the variable of this ending names."""
SECRET_MAX_BYTES: Final = 64 * 1024

_NAME_MAX: Final = 249  # Kafka's limit of a topic name
_PREFIX_MAX: Final = _NAME_MAX - max(len(spec.name) for spec in SPECS) - 1

FAULT: Final = (
    r"(?P<point>K[0-9]|K1[0-3])"
    r":(?P<action>kill|stop|(?<!K5:)raise|(?<=K8:)full|delay=(?P<delay>[0-9]{1,12}(?:ms|[smhd])))"
    r"(?:@(?P<nth>[1-9][0-9]{0,8}|\*))?"
)
"""A crash point, what happens there, and at which time; what is raised at K5 would reach nobody."""


class BadSetting(TaskflowError):
    """A setting has no meaning; nothing was started. One sentence for each, without secrets."""


class Expected(NamedTuple):
    """What a setting may be, in words that finish the sentence "it must be …"."""

    words: str


class Address(NamedTuple):
    """Where to listen; port 0 means a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_duration(text: str) -> int:
    """Milliseconds of `250ms`, `5s`, `10m`, `24h` or `30d`. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text.strip())
    if match is None:
        raise ValueError("not a duration such as 250ms, 5s, 10m, 24h or 30d")
    return int(match[1]) * _UNIT_MS[match[2]]


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`; its unit is not part of the name."""
    return PREFIX + field.removesuffix("_ms").upper()


def _as_duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _as_duration_or_off(value: object) -> object:
    return None if value == OFF else _as_duration(value)


def _as_address(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value == OFF else _address(value)


def _address(text: str) -> Address:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:,\[\]]+)):([0-9]{1,5})", text.strip())
    if match is None or int(match[3]) > 65535:
        raise ValueError("not an address host:port")
    return Address(match[1] or match[2], int(match[3]))


def _addresses(text: str) -> str:
    if not all(_address(part).port for part in text.split(",")):
        raise ValueError("port 0 is nobody's")
    return ",".join(part.strip() for part in text.split(","))


_HOST: Final = re.compile(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?")


def _as_hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    hosts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not all(_HOST.fullmatch(host) for host in hosts):
        raise ValueError("not a list of host names")
    return hosts


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _expanded(path: Path) -> Path:
    return path.expanduser()


_DURATION_WORDS = "a duration such as 250ms, 5s, 10m, 24h or 30d"
_DurationMs = Annotated[int, BeforeValidator(_as_duration)]
_Path = Annotated[Path, AfterValidator(_expanded)]


def _command(secret: SecretStr) -> SecretStr:
    if not shlex.split(secret.get_secret_value()):
        raise ValueError("no command")
    return secret


def _name(max_length: int) -> Any:
    return Field(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=max_length)


def _name_words(max_length: int) -> Expected:
    return Expected(f"1 to {max_length} letters, digits, dots, underscores or hyphens")


_Name = Annotated[str, _name(_NAME_MAX), _name_words(_NAME_MAX)]


def _faults(text: str) -> str:
    if not all(re.fullmatch(FAULT, part) for part in text.split(",")):
        raise ValueError("not a list of crash points")
    return text


def _between(low: str, high: str) -> tuple[Any, Expected]:
    return (
        Field(ge=parse_duration(low), le=parse_duration(high)),
        Expected(f"{_DURATION_WORDS}, from {low} to {high}"),
    )


class Settings(BaseSettings):
    """Everything that a deployment may choose; each field is the variable `variable(field)`.

    Made from keyword arguments it looks at no environment, which is what tests want;
    `load_settings` reads one. Durations are integers in milliseconds.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        validate_default=False,
        hide_input_in_errors=True,
        alias_generator=AliasGenerator(validation_alias=variable),
    )

    # Kafka
    bootstrap_servers: Annotated[
        str, AfterValidator(_addresses), Expected("addresses host:port, separated by commas")
    ] = "127.0.0.1:9092"
    """Where the brokers are."""
    topic_prefix: Annotated[str, _name(_PREFIX_MAX), _name_words(_PREFIX_MAX)] = "taskflow"
    """The seven topics are `{prefix}.{name}`."""
    partitions: Annotated[int, Field(ge=1, le=10_000), Expected("a whole number of 1 to 10000")] = 4
    """Of each topic; it can never change afterwards."""
    steps_partitions: Annotated[
        int, Field(ge=1, le=10_000), Expected("a whole number of 1 to 10000")
    ] = Field(default_factory=lambda data: data.get("partitions", 4))
    """Of the topic `steps` alone, at least as many as the others have; it may grow."""
    replication_factor: Annotated[
        int, Field(ge=1, le=32), Expected("a whole number of 1 to 32")
    ] = 1
    """Of each topic, when `topics create` makes it."""
    group_id: _Name = Field(default_factory=lambda data: data.get("topic_prefix", ""))
    """The consumer group that the workers share; the prefix unless given."""
    instance_id: Annotated[_Name | None, _name_words(_NAME_MAX)] = None
    """A name of this worker that survives a restart; two live workers must not share one."""
    session_timeout_ms: Annotated[_DurationMs, *_between("1s", "30m")] = 10 * _SECOND_MS
    """After this time without a sign of life the group gives a worker's partitions to others."""
    compression: Annotated[
        Literal["lz4", "zstd", "gzip", "snappy", "none"],
        BeforeValidator(_lower),
        Expected("lz4, zstd, gzip, snappy or none"),
    ] = "snappy"
    """Of the batches that are written."""

    # Who we are to Kafka
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        BeforeValidator(_upper),
        Expected("PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    ] = "PLAINTEXT"
    """How the brokers are spoken to."""
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"],
        BeforeValidator(_upper),
        Expected("PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"),
    ] = "SCRAM-SHA-512"
    """How we prove who we are, with a SASL_ protocol."""
    sasl_username: Annotated[str | None, Expected("a name")] = None
    """For SASL with a password."""
    sasl_password: SecretStr | None = None
    """For SASL with a password."""
    sasl_oauth_token_file: _Path | None = None
    """For OAUTHBEARER: the file that holds the token; read for each connection."""
    sasl_oauth_token_command: Annotated[
        SecretStr | None,
        AfterValidator(_command),
        Expected("a command and its arguments, quoted as for a shell"),
    ] = None
    """For OAUTHBEARER: the command that prints a token; run again before that expires."""
    ssl_cafile: _Path | None = None
    """Authorities to trust (PEM) instead of the system's."""
    ssl_certfile: _Path | None = None
    """Our own certificate (PEM), if the brokers ask for one."""
    ssl_keyfile: _Path | None = None
    """Its private key, if it is not in the same file."""
    ssl_password: SecretStr | None = None
    """Of the private key."""
    ssl_check_hostname: Annotated[bool, Expected("true or false")] = True
    """Whether a broker's certificate must carry its host name."""

    # This machine
    state_dir: _Path = Path("data")
    """The worker's tables, and the data of `taskflow up`."""
    standby: Annotated[bool, Expected("true or false")] = False
    """Whether tables of partitions that others own are kept up to date here."""
    http: Annotated[
        Address | None, BeforeValidator(_as_address), Expected("an address host:port, or off")
    ] = Address("127.0.0.1", 8900)
    """Where the worker answers /live, /ready and /metrics."""
    http_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_as_hosts),
        Expected("names, IP addresses or *.example.org, separated by commas, or * for all"),
    ] = ()
    """Host names by which workers and view workers may be asked, beside localhost and the address
    that they listen at. Requests for other hosts are refused (421)."""
    views_http: Annotated[
        Address, NoDecode, BeforeValidator(_as_address), Expected("an address host:port")
    ] = Address("127.0.0.1", 8901)
    """Where a view worker answers: the page, /v1, /live, /ready and /metrics."""
    views_advertise: Annotated[
        str | None,
        Field(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+$"),
        Expected("an address such as http://views-1:8901"),
    ] = None
    """Where other view workers find this one."""
    views_token: Annotated[
        SecretStr | None, Field(min_length=16), Expected("at least 16 characters")
    ] = None
    """Whoever sends it may publish commands by HTTP."""
    views_read_token: Annotated[
        SecretStr | None, Field(min_length=16), Expected("at least 16 characters")
    ] = None
    """Only requests with it are answered from the views, if it is set."""
    views_peer_secret: Annotated[
        SecretStr | None, Field(min_length=16), Expected("at least 16 characters")
    ] = None
    """The same for all view workers: they prove to each other that they know it. Unless given,
    workers of one user on one machine share a secret that the first of them makes."""
    views_streams: Annotated[
        int, Field(ge=1, le=10_000), Expected("a whole number of 1 to 10000")
    ] = 128
    """Live streams that a view worker serves at the same time, beside those of other workers."""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(_lower),
        Expected("debug, info, warning or error"),
    ] = "info"
    """The least that is told."""
    log_format: Annotated[
        Literal["auto", "console", "json"],
        BeforeValidator(_lower),
        Expected("auto, console or json"),
    ] = "auto"
    """auto: for people on a terminal, JSON lines otherwise."""
    cache_dir: _Path | None = None
    """Where the embedded broker's jars are kept; the user's cache directory unless given."""
    broker_heap: Annotated[
        str, Field(pattern=r"^[1-9][0-9]*[kKmMgG]$"), Expected("a size such as 512m or 2g")
    ] = "512m"
    """The embedded broker's largest heap."""
    broker_jit: Annotated[Literal["full", "quick"], Expected("full or quick")] = "full"
    """quick: the embedded broker starts sooner, and is slower under load for long."""
    broker_aot: _Path | None = None
    """An AOT cache of the embedded broker's JVM, which starts sooner from it."""

    # Rules of the flows
    dedupe_window_ms: Annotated[_DurationMs, *_between("1ms", "30d")] = _HOUR_MS
    """For how long a command's id is remembered."""
    timer_max_horizon_ms: Annotated[_DurationMs, *_between("1ms", "3650d")] = 30 * _DAY_MS
    """How far ahead a wait may end."""
    retain_terminal_ms: Annotated[
        Annotated[int, Field(ge=1)] | None,
        BeforeValidator(_as_duration_or_off),
        Expected(f"{_DURATION_WORDS}, at least 1ms, or off"),
    ] = 30 * _DAY_MS
    """For how long a flow that has ended is kept."""
    flow_steps_max: Annotated[
        int, Field(ge=1, le=1_000_000), Expected("a whole number of 1 to 1000000")
    ] = 10_000
    """How many steps a flow may have, managed and observed together."""

    # Tuning
    batch_max_records: Annotated[
        int, Field(ge=1, le=100_000), Expected("a whole number of 1 to 100000")
    ] = 1500
    """Of one partition, decided in one transaction. Larger ones take more memory."""
    flow_cache_bytes: Annotated[
        int, Field(ge=1024 * 1024), Expected("a whole number of at least 1048576")
    ] = 128 * 1024 * 1024
    """Memory of a worker for flows that are not in a batch."""
    commit_timeout_ms: Annotated[_DurationMs, *_between("1s", "10m")] = 10 * _SECOND_MS
    """A transaction that takes longer is given up, and its partition taken over again."""
    watchdog_timeout_ms: Annotated[_DurationMs, *_between("1s", "1h")] = 30 * _SECOND_MS
    """A consumer that makes no progress for this long, with work there, is started anew."""

    # For tests only
    faults: Annotated[
        str | None,
        AfterValidator(_faults),
        Expected("crash points such as K6:kill@3 or K8:delay=2s@*, separated by commas"),
    ] = None
    """Where a worker breaks itself on purpose, and how; see processor/faults."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Self:
        if self.uses_oauth:
            self._one_source_of_tokens()
        elif self.uses_sasl and (self.sasl_username is None or self.sasl_password is None):
            missing = "sasl_username" if self.sasl_username is None else "sasl_password"
            raise _contradiction(
                f"{variable(missing)} is missing, but {variable('security_protocol')} "
                f"is {self.security_protocol}"
            )
        if self.steps_partitions < self.partitions:
            raise _contradiction(
                f"{variable('steps_partitions')} is {self.steps_partitions}, but must be at least "
                f"{variable('partitions')}, {self.partitions}"
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise _contradiction(
                f"{variable('ssl_certfile')} is missing, but {variable('ssl_keyfile')} is given"
            )
        return self

    def _one_source_of_tokens(self) -> None:
        file, command = variable("sasl_oauth_token_file"), variable("sasl_oauth_token_command")
        if self.sasl_oauth_token_file is None and self.sasl_oauth_token_command is None:
            raise _contradiction(
                f"{file} is missing, and {command} as well, but {variable('sasl_mechanism')} is "
                "OAUTHBEARER"
            )
        if self.sasl_oauth_token_file is not None and self.sasl_oauth_token_command is not None:
            raise _contradiction(f"{file} and {command} are both given; keep one of them")

    def partitions_of(self, topic: str) -> int:
        """How many partitions the topic of this full name is to have."""
        steps = Topics(self.topic_prefix).steps
        return self.steps_partitions if topic == steps else self.partitions

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_oauth(self) -> bool:
        return self.uses_sasl and self.sasl_mechanism == "OAUTHBEARER"

    @property
    def uses_ssl(self) -> bool:
        return self.security_protocol.endswith("SSL")


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


def _contradiction(text: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": text})


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
