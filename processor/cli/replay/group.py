"""Set a consumer group's offsets by time, for `taskflow replay group`."""

from processor.adapters.kafka.admin.topic_admin import partition_counts
from processor.adapters.kafka.consumer.group_offsets import (
    LATEST_MS,
    GroupOccupied,
    committed_offsets,
    describe_group,
    offsets_at,
    set_offsets,
)
from processor.cli.common.confirm import Confirmation
from processor.cli.common.options import since_ms
from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.runner import Refused, run, settings_and_logs
from processor.contract.topics import Topics
from processor.settings import Settings

BEGINNING, END = "beginning", "end"


def move_group(group_id: str, to: str, topic: str | None, ask: Confirmation, *, json: bool) -> None:
    """Show the offsets, confirm them and set them. Raises WrongUse, Refused, GroupOccupied."""
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
            write_json({**place, "now": now.get(partition), "then": at, "set": not ask.dry_run})
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
