"""Pack a batch's records and table changes while it is decided.

What is packed as soon as it is made is still in the CPU's caches, and a record leaves its memory to
the next one: a batch of 1,000 makes some three megabytes of them.
"""

from collections.abc import Mapping

from processor.contract.topics import Topics
from processor.engine.batch import Pack
from processor.engine.ports import Table, TransactionalProducer


class TransactionPacks:
    """The records of one transaction, by topic, and the changes that go with them."""

    def __init__(self, topics: Topics, writer: TransactionalProducer, table: Table) -> None:
        self.audit, self.outcomes = map(writer.new_pack, (topics.audit, topics.outcomes))
        self.state, self.control = map(writer.new_pack, (topics.state, topics.control))
        self.dead_letters = writer.new_pack(topics.dead_letters)
        self.changes = table.new_pack()
        self._topics = topics

    @property
    def packs(self) -> Mapping[str, Pack]:
        """Those with records, by topic."""
        topics = self._topics
        by_topic = {
            topics.audit: self.audit,
            topics.outcomes: self.outcomes,
            topics.dead_letters: self.dead_letters,
            topics.state: self.state,
            topics.control: self.control,
        }
        return {topic: pack for topic, pack in by_topic.items() if len(pack)}
