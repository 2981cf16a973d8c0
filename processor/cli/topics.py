"""`taskflow topics`: make the topics, compare them with what they must be, print rights."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from processor.cli.common.output import console, for_people, plain, say, write_json
from processor.cli.common.runner import WrongUse, run, settings_and_logs
from processor.contract.rights import ROLES, Role, rights
from processor.contract.topics import SPECS, Topics


class AclFormat(StrEnum):
    """How `topics acls` prints."""

    KAFKA_ACLS = "kafka-acls"
    STRIMZI = "strimzi"


app = typer.Typer(
    help="Make the topics, or compare them with what they must be.", no_args_is_help=True
)


@app.command("create")
def create(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Instead of the seven: topics for `replay to`."),
    ] = None,
    signals: Annotated[
        bool, typer.Option("--signals", help="Also the four topics of `taskflow signals`.")
    ] = False,
) -> None:
    """Make those of the seven topics that are missing, and add the partitions that `steps` lacks.
    Existing topics are not changed otherwise.

    With --signals: make the four topics of `taskflow signals`, too. With names: make topics of
    these full names for `taskflow replay to`, with as many partitions as the audit, the events' own
    timestamps, and no end of retention.

    Prints the names of the topics that it made or that grew.

    Example: `TASKFLOW_PARTITIONS=12 TASKFLOW_REPLICATION_FACTOR=3 taskflow topics create`

    Example: `taskflow topics create billing.rebuild`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_PARTITIONS,
    TASKFLOW_STEPS_PARTITIONS, TASKFLOW_REPLICATION_FACTOR, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.adapters.kafka.admin.topic_admin import (
        create_replay_topics,
        create_signal_topics,
        create_topics,
    )

    settings = settings_and_logs(quiet=True)
    if own := sorted({*(names or ())} & {name for name, _ in Topics(settings.topic_prefix)}):
        raise WrongUse(f"{own[0]} is one of the seven: `taskflow topics create` makes these.")
    if names and signals:
        raise WrongUse("--signals does not go with names: it adds to the seven topics.")

    async def create_all() -> list[str]:
        if names:
            return await create_replay_topics(settings, names)
        made = await create_topics(settings)
        return [*made, *await create_signal_topics(settings)] if signals else made

    made = run(create_all)
    for name in made:
        if for_people():
            console().print(f"made {name}", markup=False)
        else:
            write_json(
                {"topic": name} | ({} if names else {"partitions": settings.partitions_of(name)})
            )
    if not made:
        say(f"{'All of them' if names or signals else 'All seven topics'} are there already.")


@app.command("check")
def check(
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Compare the topics with what they must be. Changes nothing; exit code 1 if they differ.

    Prints one line for each difference.

    Example: `taskflow topics check`

    Settings: as for `topics create`.
    """
    from processor.adapters.kafka.admin.topic_admin import check_topics

    settings = settings_and_logs(quiet=True)
    mismatches = run(lambda: check_topics(settings))
    if for_people(json):
        if mismatches:
            out = console()
            for mismatch in mismatches:
                out.print(plain(f"{mismatch}."))
                out.print(plain(f"  {mismatch.cure}"), style="dim")
    else:
        for mismatch in mismatches:
            write_json(asdict(mismatch) | {"cure": mismatch.cure})
    if mismatches:
        topics = len({mismatch.topic for mismatch in mismatches})
        say(
            f"{topics} of {len(SPECS)} topics of {settings.topic_prefix!r} are not as they must be."
        )
        raise typer.Exit(1)
    say(f"All seven topics of {settings.topic_prefix!r} are as they must be.")


@app.command("acls")
def acls(
    role: Annotated[
        Role,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="; ".join(f"{name}: {does}" for name, does in ROLES.items()),
        ),
    ],
    principal: Annotated[
        str | None,
        typer.Option(
            "--principal", help="Whom to allow it, such as User:alice. [default: User:ROLE]"
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", help="The group of executors other than those of `step run`."),
    ] = None,
    form: Annotated[
        AclFormat,
        typer.Option("--format", help="Lines for kafka-acls.sh, or a Strimzi KafkaUser in YAML."),
    ] = AclFormat.KAFKA_ACLS,
) -> None:
    """Print the ACLs that a role needs, and no others. It asks no broker.

    Read, Write and Alter include Describe. processor/docs/security.md says what `repartition`,
    `replay to` and `replay group` need beside.

    Example: `taskflow topics acls --role worker --principal User:worker | sh`

    Settings: TASKFLOW_TOPIC_PREFIX, TASKFLOW_GROUP_ID, TASKFLOW_BOOTSTRAP_SERVERS.
    """
    from processor.ops.acls import kafka_acls, strimzi_user
    from processor.ops.yaml_text import to_yaml

    settings = settings_and_logs(quiet=True)
    whom = f"User:{role}" if principal is None else principal
    kind, colon, name = whom.partition(":")
    if not (kind and colon and name):
        raise WrongUse(f"--principal is {whom!r}, but must be like User:alice.")
    names = Topics(settings.topic_prefix)
    needed = rights(role, names, settings.group_id, executors=group)
    if form is AclFormat.STRIMZI:
        typer.echo(to_yaml(strimzi_user(needed, whom)), nl=False)
    else:
        typer.echo("\n".join(kafka_acls(needed, whom, settings.bootstrap_servers)))
