"""Find dead letters, and format them."""

import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.reader.topic_reader import read, time_of
from processor.cli.common.options import id_or_prefix, since_ms
from processor.cli.common.progress import progress_bar
from processor.cli.common.rows import Column, age, print_rows
from processor.cli.common.runner import Refused, WrongUse
from processor.contract.outcomes import Code
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.engine.ports import Start
from processor.ops.deadletters import DeadLetterRecord, Spot, Wanted, dead_letter_of, redriven_spot
from processor.ops.redrive import faults_text
from processor.settings import Settings

_COMMON: Final = "The value is not one JSON object within the limits: "
"""How the messages of `malformed` begin; what differs follows."""
_SPOT: Final = re.compile(r"([0-9]{1,9})/([0-9]{1,18})")


def wanted_of(
    spots: Sequence[Spot],
    code: str | None,
    since: str | None,
    until: str | None,
    flow: str | None,
) -> Wanted:
    """Which letters the options of a command mean. Raises WrongUse."""
    return Wanted(
        spots,
        code,
        None if since is None else since_ms(since),
        None if until is None else since_ms(until, "--until"),
        None if flow is None else id_or_prefix(flow).encode(),
    )


def spot_of(place: str) -> Spot:
    """Where the letter `2/17` lies. Raises WrongUse."""
    found = _SPOT.fullmatch(place)
    if found is None:
        raise WrongUse(
            f"{place!r} is not a place of a dead letter: it is partition/offset, such as 2/17."
        )
    return Spot(int(found[1]), int(found[2]))


async def find_dead_letter(
    settings: Settings, spot: Spot
) -> tuple[DeadLetterRecord, dict[Spot, str]]:
    """One letter, and where it was sent back to, if it was. Raises Refused."""
    dead_letters, sent = await find_dead_letters(settings, Wanted((spot,)), look_for_sent=True)
    if not dead_letters:
        raise no_dead_letter(settings, spot)
    return dead_letters[0], sent


def no_dead_letter(settings: Settings, spot: Spot) -> Refused:
    """What to raise where there is none."""
    return Refused(
        f"There is no dead letter {spot} under {settings.topic_prefix!r}; "
        "`taskflow deadletters list` shows those there are."
    )


async def find_dead_letters(
    settings: Settings, wanted: Wanted, *, look_for_sent: bool
) -> tuple[list[DeadLetterRecord], dict[Spot, str]]:
    """The letters, and where those lie that were sent back."""
    names = Topics(settings.topic_prefix)
    start: Start = "beginning" if wanted.since_ms is None else time_of(wanted.since_ms)
    partitions: list[int] | None = None
    if wanted.spots:
        count = (await count_partitions(settings, [names.dead_letters]))[names.dead_letters]
        partitions = sorted({spot.partition for spot in wanted.spots if spot.partition < count})
        if not partitions:
            return [], {}
    dead_letters = []
    records = read(settings, names.dead_letters, start=start, partitions=partitions)
    async with aclosing(records):
        async for record in records:
            if wanted.takes(dead_letter := dead_letter_of(record)):
                dead_letters.append(dead_letter)
    sent: dict[Spot, str] = {}
    if dead_letters and look_for_sent:
        since = time_of(min(dead_letter.at_ms for dead_letter in dead_letters))
        sources = {names.commands, names.control} & {
            dead_letter.source_topic for dead_letter in dead_letters
        }
        with progress_bar("looking for what was sent back") as bar:
            for topic in sorted(sources):
                async with aclosing(read(settings, topic, start=since)) as records:
                    async for record in records:
                        bar.count(1)
                        spot = redriven_spot(record, names.dead_letters)
                        if spot is not None:
                            sent[spot] = f"{topic}/{record.partition}/{record.offset}"
    return dead_letters, sent


def row_of(dead_letter: DeadLetterRecord, sent: Mapping[Spot, str]) -> dict[str, Any]:
    """A letter as JSON; `sent` as of `find_dead_letters`."""
    return {
        "letter": str(dead_letter.spot),
        "at": instant(dead_letter.at_ms),
        "code": dead_letter.facts.code,
        "from": source_of(dead_letter),
        "redriven_to": sent.get(dead_letter.spot),
    }


def source_of(dead_letter: DeadLetterRecord) -> str:
    """Where its record lay."""
    return (
        "(it does not say)" if dead_letter.facts.source is None else str(dead_letter.facts.source)
    )


def reason_of(dead_letter: DeadLetterRecord) -> str:
    """Why it is a dead letter. Where that is fields, its record says so and no more: they are found
    again."""
    if dead_letter.facts.code != Code.INVALID_COMMAND:
        return dead_letter.facts.message.removeprefix(_COMMON)
    return faults_text(dead_letter.diagnosis) or dead_letter.facts.message


def print_dead_letters(
    out: Console,
    dead_letters: Sequence[DeadLetterRecord],
    sent: Mapping[Spot, str] | None,
    now_ms: int,
) -> None:
    """Dead letters, one a row, for people; `sent` as of `find_dead_letters`, or None."""
    rows = [
        (
            str(dead_letter.spot),
            age(instant(dead_letter.at_ms), now_ms),
            Text(dead_letter.facts.code, style="red"),
            source_of(dead_letter),
            *(() if sent is None else (sent.get(dead_letter.spot, ""),)),
            reason_of(dead_letter),
        )
        for dead_letter in dead_letters
    ]
    columns = (
        *(Column("letter"), Column("age"), Column("code", 12), Column("from", 12, rank=2)),
        *(() if sent is None else (Column("sent back to", 16, rank=1),)),
        Column("why", 40),
    )
    print_rows(out, columns, rows)
