"""The settings of a deployment."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from processor.contract.topics import Topics
from processor.contract.values import PARTITIONS_MAX
from processor.settings.values import (
    DAY_MS,
    HOUR_MS,
    NAME_MAX,
    PREFIX_MAX,
    SECOND_MS,
    Address,
    DatabaseAddress,
    DurationMs,
    ExpandedPath,
    Expected,
    Name,
    OptionalAddress,
    OptionalDurationMs,
    OwnAddress,
    SchemaName,
    Token,
    as_addresses,
    as_command,
    as_faults,
    as_hosts,
    between,
    lower,
    name_pattern,
    name_words,
    upper,
    variable,
    whole,
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
        str, AfterValidator(as_addresses), Expected("addresses host:port, separated by commas")
    ] = "127.0.0.1:9092"
    """Where the brokers are."""
    topic_prefix: Annotated[str, name_pattern(PREFIX_MAX), name_words(PREFIX_MAX)] = "taskflow"
    """The seven topics are `{prefix}.{name}`."""
    partitions: Annotated[int, *whole(1, PARTITIONS_MAX)] = 4
    """Of each topic; it can never change afterwards."""
    steps_partitions: Annotated[int, *whole(1, 10_000)] = Field(
        default_factory=lambda data: data.get("partitions", 4)
    )
    """Of the topic `steps` alone, at least as many as the others have; it may grow. Executors see
    more within 10 s, workers write to them within 30 s."""
    replication_factor: Annotated[int, *whole(1, 32)] = 1
    """Of each topic, when `topics create` makes it; from three replicas on, a majority must have a
    record before it is acknowledged."""
    group_id: Name = Field(default_factory=lambda data: data.get("topic_prefix", ""))
    """The consumer group that the workers share; the prefix unless given."""
    instance_id: Annotated[Name | None, name_words(NAME_MAX)] = None
    """A name of this worker that survives a restart; two live workers must not share one."""
    session_timeout_ms: Annotated[DurationMs, *between("1s", "30m")] = 10 * SECOND_MS
    """After this time without a sign of life the group gives a worker's partitions to others."""
    compression: Annotated[
        Literal["lz4", "zstd", "gzip", "snappy", "none"],
        BeforeValidator(lower),
        Expected("lz4, zstd, gzip, snappy or none"),
    ] = "snappy"
    """Of the batches that are written."""

    # Who we are to Kafka
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        BeforeValidator(upper),
        Expected("PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    ] = "PLAINTEXT"
    """How the brokers are spoken to."""
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"],
        BeforeValidator(upper),
        Expected("PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"),
    ] = "SCRAM-SHA-512"
    """How we prove who we are, with a SASL_ protocol."""
    sasl_username: Annotated[str | None, Expected("a name")] = None
    """For SASL with a password."""
    sasl_password: SecretStr | None = None
    """For SASL with a password."""
    sasl_oauth_token_file: ExpandedPath | None = None
    """For OAUTHBEARER: the file that holds the token; read for each connection."""
    sasl_oauth_token_command: Annotated[
        SecretStr | None,
        AfterValidator(as_command),
        Expected("a command and its arguments, quoted as for a shell"),
    ] = None
    """For OAUTHBEARER: the command that prints a token; run again before that expires."""
    ssl_cafile: ExpandedPath | None = None
    """Authorities to trust (PEM) instead of the system's."""
    ssl_certfile: ExpandedPath | None = None
    """Our own certificate (PEM), if the brokers ask for one."""
    ssl_keyfile: ExpandedPath | None = None
    """Its private key, if it is not in the same file."""
    ssl_password: SecretStr | None = None
    """Of the private key."""
    ssl_check_hostname: Annotated[bool, Expected("true or false")] = True
    """Whether a broker's certificate must carry its host name."""

    # This machine
    state_dir: ExpandedPath = Path("data")
    """The worker's tables, and the data of `taskflow up`."""
    standby: Annotated[bool, Expected("true or false")] = False
    """Whether tables of partitions that others own are kept up to date here."""
    cloudevents_source: Annotated[
        str | None,
        Field(pattern=r"^[!#-;=?-\[\]_a-z~%]{1,256}$"),
        Expected("a URI reference such as //shop.example/taskflow, of at most 256 characters"),
    ] = None
    """If set, outcomes and FlowEvents have CloudEvents headers, with this as `ce_source`."""
    http: OptionalAddress = Address("127.0.0.1", 8900)
    """Where the worker answers /live, /ready and /metrics."""
    http_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(as_hosts),
        Expected("names, IP addresses or *.example.org, separated by commas, or * for all"),
    ] = ()
    """Host names by which workers and view workers may be asked, beside localhost and the address
    that they listen at. Requests for other hosts are refused (421)."""
    views_http: OwnAddress = Address("127.0.0.1", 8901)
    """Where a view worker answers: the page, /v1, /live, /ready and /metrics."""
    views_advertise: Annotated[
        str | None,
        Field(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+$"),
        Expected("an address such as http://views-1:8901"),
    ] = None
    """Where other view workers find this one."""
    views_token: Token = None
    """A request that carries it may publish commands by HTTP."""
    views_operator_token: Token = None
    """A request that carries it acts by HTTP and in the page with an operator's authority."""
    views_read_token: Token = None
    """Only requests with it are answered from the views, if it is set."""
    views_peer_secret: Token = None
    """The same for all view workers: they prove to each other that they know it. Unless given,
    workers of one user on one machine share a secret that the first of them makes."""
    views_streams: Annotated[int, *whole(1, 10_000)] = 128
    """Live streams that a view worker serves at the same time, beside those of other workers."""
    sink_dsn: DatabaseAddress = None
    """The PostgreSQL that `taskflow sink postgres` writes to."""
    sink_schema: SchemaName = "public"
    """The schema of the sink's tables."""
    sink_http: OptionalAddress = Address("127.0.0.1", 8902)
    """Where the sink answers /live, /ready and /metrics."""
    mcp_owner: Annotated[
        str | None, Field(min_length=1, max_length=256), Expected("1 to 256 characters")
    ] = None
    """The session that an MCP server acts as; by default login and host."""
    mcp_http: OwnAddress = Address("127.0.0.1", 8903)
    """The address of `taskflow mcp --http`."""
    mcp_token: Token = None
    """The bearer token that `taskflow mcp --http` asks for, if it is set."""
    outbox_dsn: DatabaseAddress = None
    """The producer's PostgreSQL, whose rows `taskflow outbox` sends."""
    outbox_schema: SchemaName = "public"
    """The schema of the outbox's table."""
    outbox_retain_ms: OptionalDurationMs = 7 * DAY_MS
    """For how long a row is kept after its outcome."""
    outbox_http: OptionalAddress = Address("127.0.0.1", 8904)
    """The address of /live, /ready and /metrics of the outbox's relay."""
    signals_http: OptionalAddress = Address("127.0.0.1", 8905)
    """The address of /live, /ready and /metrics of `taskflow signals`."""
    schema_registry: Annotated[
        SecretStr | None, Expected("an address such as https://user:password@registry.example:8081")
    ] = None
    """The schema registry of `taskflow schemas register`."""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(lower),
        Expected("debug, info, warning or error"),
    ] = "info"
    """The lowest level that is logged."""
    log_format: Annotated[
        Literal["auto", "console", "json"],
        BeforeValidator(lower),
        Expected("auto, console or json"),
    ] = "auto"
    """auto: for people on a terminal, JSON lines otherwise."""
    cache_dir: ExpandedPath | None = None
    """Where the embedded broker's jars are kept; the user's cache directory unless given."""
    broker_heap: Annotated[
        str, Field(pattern=r"^[1-9][0-9]*[kKmMgG]$"), Expected("a size such as 512m or 2g")
    ] = "512m"
    """The embedded broker's largest heap."""
    broker_jit: Annotated[Literal["full", "quick"], Expected("full or quick")] = "full"
    """quick: the embedded broker starts sooner, and is slower under load for long."""
    broker_aot: ExpandedPath | None = None
    """An AOT cache of the embedded broker's JVM, which starts sooner from it."""

    # Rules of the flows
    dedupe_window_ms: Annotated[DurationMs, *between("1ms", "30d")] = HOUR_MS
    """For how long a command's id is remembered."""
    timer_max_horizon_ms: Annotated[DurationMs, *between("1ms", "3650d")] = 30 * DAY_MS
    """How far ahead a wait may end."""
    retain_terminal_ms: OptionalDurationMs = 30 * DAY_MS
    """For how long a flow that has ended is kept."""
    signal_ttl_ms: Annotated[DurationMs, *between("1s", "30d")] = DAY_MS
    """How long an early signal is kept, from its append on."""
    flow_steps_max: Annotated[int, *whole(1, 1_000_000)] = 10_000
    """How many steps a flow may have, managed and observed together."""

    # Tuning
    batch_max_records: Annotated[int, *whole(1, 100_000)] = 1500
    """Of one partition, decided in one transaction. Larger ones take more memory."""
    flow_cache_bytes: Annotated[int, *whole(1024 * 1024)] = 128 * 1024 * 1024
    """Memory of a worker for flows that are not in a batch."""
    commit_timeout_ms: Annotated[DurationMs, *between("1s", "10m")] = 10 * SECOND_MS
    """A transaction that takes longer is given up, and its partition taken over again."""
    watchdog_timeout_ms: Annotated[DurationMs, *between("1s", "1h")] = 30 * SECOND_MS
    """A consumer that makes no progress for this long, with work there, is restarted."""

    # For tests only
    faults: Annotated[
        str | None,
        AfterValidator(as_faults),
        Expected("crash points such as K6:kill@3 or K8:delay=2s@*, separated by commas"),
    ] = None
    """Where a worker breaks itself on purpose, and how; see processor/testing/failpoints."""

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
        for name in ("views_read_token", "views_token"):
            if self.views_operator_token is not None and self.views_operator_token == getattr(
                self, name
            ):
                raise _contradiction(
                    f"{variable('views_operator_token')} is the same as {variable(name)}: who may "
                    "read or publish could act"
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


def _contradiction(text: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{text}", {"text": text})
