"""Pack a batch's records and table changes while it is decided.

What is packed as soon as it is made is still in the CPU's caches, and a record leaves its memory to
the next one: a batch of 1,000 makes some three megabytes of them.
"""

from collections.abc import Sequence

from processor.contract.topics import Topics
from processor.engine.batch import Outgoing, WriteSet
from processor.engine.ports import Pack, Table, TransactionalProducer


class TransactionPacks:
    """The records of one transaction, by topic, and the changes that go with them."""

    def __init__(self, topics: Topics, writer: TransactionalProducer, table: Table) -> None:
        self.packs: dict[str, Pack] = {}
        self.changes = table.new_pack()
        self._topics = topics
        self._new_pack = writer.new_pack

    def take(self, batch: WriteSet) -> None:
        """Take out of `batch` what stands there to be sent and to be changed."""
        topics = self._topics
        for topic, records in (
            (topics.audit, batch.audit),
            (topics.outcomes, batch.outcomes),
            (topics.state, batch.state),
            (topics.dead_letters, batch.dead_letters),
        ):
            if records:
                self.put(topic, records)
                records.clear()
        self.changes.take(batch.changes)
        batch.changes.clear()

    def put(self, topic: str, records: Sequence[Outgoing]) -> None:
        if records:
            pack = self.packs.get(topic)
            if pack is None:
                pack = self.packs[topic] = self._new_pack()
            pack.extend(records)

    def count(self, topic: str) -> int:
        """How many records go to `topic`."""
        pack = self.packs.get(topic)
        return 0 if pack is None else len(pack)
