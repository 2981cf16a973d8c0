"""Make manifests and units of the options and the settings, and write them."""

import os
import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from processor.cli.common.output import say
from processor.cli.common.runner import WrongUse
from processor.ops.deployment.kubernetes import as_text, manifests
from processor.ops.deployment.operators import Operator
from processor.ops.deployment.plan import (
    NAME,
    NAME_MAX,
    KubernetesDeployment,
    name_from,
    passed_on,
)
from processor.ops.deployment.systemd import Machine, units
from processor.ops.deployment.workloads import scaled
from processor.settings import SECRET_FILES, Settings, load_settings, variable

BOOTSTRAP: Final = variable("bootstrap_servers")
PASSWORD: Final = variable("sasl_password")
USERNAME: Final = variable("sasl_username")
TOKEN_FILE: Final = variable("sasl_oauth_token_file")
TOKEN_COMMAND: Final = variable("sasl_oauth_token_command")
CA_OF_THE_SYSTEM: Final = "system"
VIEWS_TOKEN: Final = variable("views_token")
OUTBOX_DSN_FILE: Final = f"{variable('outbox_dsn')}_FILE"
ABSENT: Final = "not known here"
"""Stands for what only the machine that it runs on has."""


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """The options of `deploy kubernetes`."""

    name: str | None
    container: str
    namespace: str | None
    workers: int
    processes: int
    views: int
    signals: int
    outbox: int
    storage: str
    kafka_cluster: str
    ca_secret: str | None
    without: frozenset[Operator]


@dataclass(frozen=True, slots=True)
class SystemdOptions:
    """The options of `deploy systemd`."""

    name: str | None
    program: Path | None
    processes: int
    signals: bool
    outbox: bool


def write_manifests(options: KubernetesOptions, output: Path | None, *, replace: bool) -> None:
    """Write the manifests to `output`, or to standard output. Raises WrongUse, BadSetting."""
    environ = dict(os.environ)
    _require_brokers(environ)
    if environ.get(TOKEN_COMMAND):
        raise WrongUse(
            f"{TOKEN_COMMAND} cannot be run in the container; without it a pod gets tokens of its "
            "service account."
        )
    # Pods get theirs from Secrets.
    settings = _settings(environ, {PASSWORD: ABSENT, USERNAME: ABSENT, TOKEN_FILE: ABSENT})
    deployment = _deployment(options, settings, environ)
    if settings.replication_factor == 1 and Operator.STRIMZI in deployment.operators:
        say("warning: TASKFLOW_REPLICATION_FACTOR is 1: each topic has one copy of its data.")
    if environ.get(VIEWS_TOKEN) or environ.get(f"{VIEWS_TOKEN}_FILE"):
        say(f"{VIEWS_TOKEN} is left out: the views have no right to publish for services.")
    if Operator.KEDA in deployment.operators and not scaled(deployment):
        say("There is no ScaledObject: KEDA takes no tokens of service accounts.")
    texts = {name: as_text(documents) for name, documents in manifests(deployment).items()}
    _write(texts, output, replace=replace)


def write_units(options: SystemdOptions, output: Path | None, *, replace: bool) -> None:
    """Write the units to `output`, or to standard output. Raises WrongUse, BadSetting."""
    environ = dict(os.environ)
    _require_brokers(environ)
    for secret in SECRET_FILES.values():
        if environ.get(secret):
            raise WrongUse(
                f"{secret} is a secret, which must not stand in a unit: put it into a file, and "
                f"name that by {secret}_FILE."
            )
    settings = _settings(environ, {})
    program = options.program or Path(sysconfig.get_path("scripts")) / "taskflow"
    _require_processes(options.processes, settings)
    if options.outbox and not environ.get(OUTBOX_DSN_FILE):
        raise WrongUse(f"{OUTBOX_DSN_FILE} is missing: it names the file with the outbox's DSN.")
    machine = Machine(
        name=_name(options.name, settings),
        settings=settings,
        environ=environ,
        program=program.absolute(),
        processes=options.processes,
        signals=options.signals,
        outbox=options.outbox,
    )
    _write(units(machine), output, replace=replace)


def _deployment(
    options: KubernetesOptions, settings: Settings, environ: Mapping[str, str]
) -> KubernetesDeployment:
    """Raises WrongUse."""
    operators = frozenset(Operator) - options.without
    _require_processes(options.processes, settings)
    ca_secret = options.ca_secret
    if ca_secret is None and Operator.STRIMZI in operators:
        ca_secret = f"{options.kafka_cluster}-cluster-ca-cert"
    if not re.fullmatch(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)", options.storage):
        raise WrongUse(f"--storage is {options.storage!r}, but must be a size such as 10Gi.")
    deployment = KubernetesDeployment(
        name=_name(options.name, settings),
        settings=settings,
        environment=passed_on(environ),
        container=options.container,
        namespace=options.namespace,
        workers=options.workers,
        processes=options.processes,
        views=options.views,
        signals=options.signals,
        outbox=options.outbox,
        storage=options.storage,
        kafka_cluster=options.kafka_cluster,
        ca_secret=None if ca_secret == CA_OF_THE_SYSTEM else ca_secret,
        operators=operators,
    )
    if options.workers > deployment.workers_max:
        raise WrongUse(
            f"--workers is {options.workers}, but {deployment.workers_max} have all of the "
            f"{settings.partitions} partitions; the others would do nothing."
        )
    return deployment


def _settings(environ: Mapping[str, str], absent: Mapping[str, str]) -> Settings:
    """The settings in `environ`; what stands in files is not read, since they are elsewhere.
    `absent`: what stands for settings that are not there. Raises BadSetting."""
    given = {name: value for name, value in environ.items() if name not in SECRET_FILES}
    # Each another text: two tokens must not be the same.
    given |= {
        secret: f"{ABSENT}: {secret}" for file, secret in SECRET_FILES.items() if environ.get(file)
    }
    return load_settings({**absent, **given}, warn=lambda sentence: say(f"warning: {sentence}"))


def _require_brokers(environ: Mapping[str, str]) -> None:
    if not environ.get(BOOTSTRAP):
        raise WrongUse(f"{BOOTSTRAP} is missing: it says where workers find Kafka.")


def _require_processes(processes: int, settings: Settings) -> None:
    if processes > settings.partitions:
        raise WrongUse(
            f"--processes is {processes}, but there are {settings.partitions} partitions; the "
            "others would do nothing."
        )


def _name(given: str | None, settings: Settings) -> str:
    """Raises WrongUse."""
    name = name_from(settings.topic_prefix) if given is None else given
    if name is None or not re.fullmatch(NAME, name):
        prefix = f"The topic prefix {settings.topic_prefix!r}"
        raise WrongUse(
            f"{prefix if given is None else f'--name {given!r}'} is no name for resources: give a "
            f"--name of 1 to {NAME_MAX} lower-case letters, digits and hyphens that begins with a "
            "letter."
        )
    return name


def _write(texts: Mapping[str, str], output: Path | None, *, replace: bool) -> None:
    """Raises WrongUse."""
    if output is None:
        many = len(texts) > 1
        for name, text in texts.items():
            typer.echo(f"# {name}\n{text}" if many else text, nl=False)
        return
    if output.exists() and not output.is_dir():
        raise WrongUse(f"{output} is no directory.")
    if not replace and (there := [name for name in texts if (output / name).exists()]):
        raise WrongUse(f"{', '.join(there)} in {output}: there already; --yes replaces them.")
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = output / name
        path.write_text(text, "utf-8")
        typer.echo(str(path))
