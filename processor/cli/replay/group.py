"""`taskflow replay group`: set a consumer group's offsets by time."""

import typer

from processor.adapters.kafka.group_offsets import (
    LATEST_MS,
    GroupOccupied,
    committed_offsets,
    describe_group,
    offsets_at,
    set_offsets,
)
from processor.adapters.kafka.topic_admin import partition_counts
from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import JSON, since_ms
from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.runner import Refused, run, settings_and_logs
from processor.contract.topics import Topics
from processor.settings import Settings

BEGINNING, END = "beginning", "end"

GROUP = typer.Argument(..., help="The consumer group's id.")
TO = typer.Option(
    ..., "--to", help="A time (2026-11-22T21:02:08Z, or 10m for ten minutes ago), beginning or end."
)
TOPIC = typer.Option(None, "--topic", help="Of which topic; the audit unless given.")


def group(
    group_id: str = GROUP,
    to: str = TO,
    topic: str | None = TOPIC,
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = JSON,
) -> None:
    """Set the offsets of a consumer group by time, so that it reads events once more, or skips.

    Each partition goes to the first record that was appended at that time or later, or to its end.
    Refused while the group has live members, which keep to their own offsets: stop them first. It
    shows the offsets and asks; in a pipe it takes --yes, and gets a JSON line for each partition.

    Example: `taskflow replay group billing --to 2026-11-22T21:02:08Z --dry-run`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    ask = Confirmation(dry_run, yes)
    at_ms = {BEGINNING: None, END: LATEST_MS}.get(to, -1)
    if at_ms == -1:
        at_ms = since_ms(to, "--to")
    settings = settings_and_logs(quiet=True)
    wanted = topic or Topics(settings.topic_prefix).audit
    now, then = run(lambda: _offsets(settings, group_id, wanted, at_ms))
    if for_people(json):
        rows = [
            (str(p), f"{now[p]:,}" if p in now else "-", f"{at:,}", _moves(now.get(p), at))
            for p, at in sorted(then.items())
        ]
        console().print(table(None, (f"{wanted}/", "now", "then", "events"), rows))
    else:
        for partition, at in sorted(then.items()):
            place = {"group": group_id, "topic": wanted, "partition": partition}
            write_json({**place, "now": now.get(partition), "then": at, "set": not dry_run})
    if not ask.before(f"Set the offsets of {group_id}?"):
        return
    run(lambda: set_offsets(settings, group_id, wanted, then))
    if for_people(json):
        say(f"The group {group_id} goes on from there.")


async def _offsets(
    settings: Settings, group_id: str, topic: str, at_ms: int | None
) -> tuple[dict[int, int], dict[int, int]]:
    """As they are, and as they would be. Raises GroupOccupied, Refused."""
    count = (await partition_counts(settings, [topic])).get(topic)
    if count is None:
        raise Refused(f"{topic} does not exist.")
    found = await describe_group(settings, group_id)
    if found.members:
        many = "a live member" if len(found.members) == 1 else f"{len(found.members)} live members"
        raise GroupOccupied(
            f"The group {group_id!r} has {many} ({', '.join(sorted(set(found.members)))}); "
            "stop all of them first. Nothing was changed."
        )
    now = await committed_offsets(settings, group_id, topic)
    return now, await offsets_at(settings, topic, count, at_ms)


def _moves(now: int | None, then: int) -> str:
    if now is None:
        return "begins there"
    return f"{now - then:,} offsets once more" if then < now else f"{then - now:,} offsets skipped"
