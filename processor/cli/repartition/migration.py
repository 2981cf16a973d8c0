"""Run a repartition from end to end: plan, copy, compare, open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from processor.adapters.kafka.admin import cluster_inspection as inspection
from processor.adapters.kafka.admin.topic_admin import partition_counts
from processor.adapters.kafka.errors import explained
from processor.adapters.kafka.producer import bulk_copy as copier
from processor.adapters.kafka.producer.transactional_producer import producers_stopped
from processor.cli.common.progress import progress_bar
from processor.cli.common.runner import Refused
from processor.cli.repartition.copy import TopicCopy, newest
from processor.cli.repartition.topic_set import STOP_TIMEOUT_S, TopicSet
from processor.contract.topics import Topics
from processor.ops.repartition.comparison import ComparedSide as Compared
from processor.settings import Settings


@dataclass
class MigrationPlan:
    """What there is to do. `finished`: the new topics are open for workers already."""

    partitions: int
    to: int
    prefix: str
    offsets: int
    undecided: int
    members: int
    finished: bool
    begun: bool

    def row(self) -> dict[str, Any]:
        return {
            "from": self.partitions,
            "to": self.to,
            "prefix": self.prefix,
            "offsets": self.offsets,
            "undecided": self.undecided,
            "goes_on": self.begun,
        }


class MigrationResult(NamedTuple):
    row: dict[str, Any]
    differences: list[str]


class Migration:
    """From the topics of the settings' prefix to those of another; `plan` comes first."""

    def __init__(self, settings: Settings, new: Topics, to: int) -> None:
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._old = TopicSet(settings, self._topics, 0)
        self._new = TopicSet(settings, new, to)

    async def plan(self) -> MigrationPlan:
        """Raises Refused, BrokerUnreachable, TopicsWrong."""
        new = self._new.topics
        everything = [name for topics in (self._topics, new) for name, _ in topics]
        counts = await partition_counts(self._settings, everything)
        missing = [name for name, _ in self._topics if name not in counts]
        if missing:
            raise Refused(f"{', '.join(missing)} does not exist.")
        distinct = {counts[name] for name in self._topics.by_flow}
        if len(distinct) > 1:
            raise Refused("The old topics differ in their partitions; `taskflow topics check`.")
        types = await copier.time_types(self._settings, new)
        there = {name for name, _ in new} & types.keys()
        wrong = [name for name in there & {*new.by_flow} if counts[name] != self._new.count]
        if wrong:
            raise Refused(
                f"{wrong[0]} is there with {counts[wrong[0]]} partitions, not {self._new.count}: "
                f"take --to {counts[wrong[0]]} to go on with it, or another --prefix."
            )
        finished = len(there) == len(list(new)) and copier.WHILE_COPIED_TIME not in types.values()
        unfinished = {name for name in there if types[name] == copier.WHILE_COPIED_TIME}
        if there - unfinished and not finished and not await self._opened_halfway(counts):
            raise Refused(f"{min(there - unfinished)} is there already; take another --prefix.")
        (self._old.count,) = distinct
        seen = await self._old.look()
        members = await inspection.group_members(self._settings)
        return MigrationPlan(
            *(self._old.count, self._new.count, self._new.topics.prefix, seen.offsets),
            await self._old.undecided(seen),
            *(members or 0, finished, bool(there)),
        )

    async def _opened_halfway(self, counts: Mapping[str, int]) -> bool:
        """Whether ours are being opened: each of them was copied by us."""
        if not all(name in counts for name, _ in self._new.topics):
            return False
        async with self._new.history(0) as history:
            _, progress = await newest(self._new.topics, history, 0)
        return bool(progress)

    async def run(self) -> MigrationResult:
        """Copy, compare, open. Raises Refused where the old side does not hold still."""
        await copier.make_for_copy(self._settings, self._new.topics, self._new.count)
        await self._old.fence()
        seen = await self._old.look()
        self._old.assert_unchanged(seen)
        try:
            with progress_bar("copying") as bar, explained(self._settings):
                bar.expect(seen.offsets)
                await TopicCopy(self._settings, self._old, self._new, seen, bar).run()
        finally:
            await producers_stopped(STOP_TIMEOUT_S)
        if (await self._old.look()).ends() != seen.ends():
            raise Refused(
                "The old side went on meanwhile: a producer writes, or a worker decides. Pause "
                "them and run it again; nothing was opened."
            )
        result = await self.compare()
        if not result.differences:
            await copier.open_for_workers(self._settings, self._new.topics)
        return result

    async def compare(self) -> MigrationResult:
        """Both sides, as they are now."""
        compared = []
        with progress_bar("comparing") as bar, explained(self._settings):
            for side in (self._old, self._new):
                seen = Compared(side.count, copy=side is self._new)
                for partition in range(side.count):
                    async with side.log(partition) as log:
                        for topic, take in (
                            (side.topics.audit, seen.event),
                            (side.topics.state, seen.snapshot),
                            (side.topics.outcomes, seen.outcome),
                        ):
                            offset_range = await log.offset_range(topic)
                            bar.expect(offset_range.stable - offset_range.start)
                            async for records in log.read(
                                topic, offset_range.start, offset_range.stable
                            ):
                                bar.advance(len(records))
                                for record in records:
                                    take(record)
                compared.append(seen)
        old, new = compared
        since_ms = old.newest_ms() - self._settings.dedupe_window_ms
        old.forget(since_ms)
        new.forget(since_ms)
        differences = sorted(old.differences(new))
        row: dict[str, Any] = {
            "prefix": self._new.topics.prefix,
            "partitions": self._new.count,
            **old.counts._asdict(),
            "went_on_since": len(new.went_on),
            "differences": len(differences),
        }
        return MigrationResult(row, differences)
