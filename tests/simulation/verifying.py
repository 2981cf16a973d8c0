"""What `taskflow verify` says of a simulated history: the same topics and tables, looked at by the
program that users have."""

import asyncio

from processor.contract.flow import Flow
from processor.ops.verify.ports import TableFlow, TablePosition, TableStep
from processor.ops.verify.report import Report
from tests.simulation.history import TOPICS, Simulation
from tests.simulation.table import Content
from tests.support.recorded_deployment import Recorded, Table


def verified(simulation: Simulation) -> Report:
    """Of a history that was run; the tables are those of the first host that has any."""
    return asyncio.run(_recorded(simulation).verify())


def _recorded(simulation: Simulation) -> Recorded:
    kafka = simulation.kafka
    found = Recorded(simulation.partitions, simulation.dedupe_window_ms)
    for name, _ in TOPICS:
        short = name.removeprefix(f"{TOPICS.prefix}.")
        for number in range(simulation.partitions):
            log = kafka.log(name, number)
            found.records[short, number] = list(log.committed(log.start, log.end))
            found.starts[short, number] = log.start
            found.ends[short, number] = (log.stable_end, log.end)
    for host in simulation.hosts:
        for number, file in host.disk.items():
            if file.content.stored is not None and number not in found.tables:
                found.tables[number] = _table(
                    f"{host.name}/{number}", simulation.partitions, file.content
                )
    return found


def _table(path: str, partitions: int, content: Content) -> Table:
    stored = content.stored
    assert stored is not None
    position = TablePosition(path, partitions, *stored.position, filled=stored.audit >= 0)
    flows = []
    for flow_id, row in content.flows.items():
        flow = Flow.model_validate_json(row.doc)
        told = (flow.revision, flow.status.value, flow.owner_session_key, flow.updated_at)
        flows.append(TableFlow(flow_id, row.doc.decode(), row.last_event_id, row.chain, *told))
    steps = [TableStep(*at, doc.decode()) for at, doc in content.steps.items()]
    return Table(position, flows, steps)
