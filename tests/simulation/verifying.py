"""What `taskflow verify` says of a simulated history as its users would run it: on what retention
and compaction have left, and with the tables of one machine."""

from processor.ops.verify.report import Report
from processor.testing.memory.deployment import Deployment, TableContents
from tests.simulation.history import TOPICS, Simulation
from tests.support.checked_deployment import without_a_loop


def verified(simulation: Simulation) -> Report:
    """Of a history that was run; the tables are those of the first host that has any."""
    kafka = simulation.kafka
    items = kafka.steps_partitions
    left = Deployment(
        simulation.partitions, simulation.dedupe_window_ms, TOPICS, steps_partitions=items
    )
    for name, _ in TOPICS:
        short = name.removeprefix(f"{TOPICS.prefix}.")
        for partition in range(items if name == TOPICS.steps else simulation.partitions):
            log = kafka.log(name, partition)
            left.records[short, partition] = list(log.committed(log.start, log.end))
            left.starts[short, partition] = log.start
            left.ends[short, partition] = (log.stable_end, log.end)
    first: dict[int, TableContents] = {}
    for table in simulation.tables():
        first.setdefault(table.partition, table)
    left.tables = [*first.values()]
    return without_a_loop(left.verify())
