"""A history with the headers of CloudEvents is the same history to all that reads it."""

from dataclasses import replace

from processor.adapters.kafka.producer.cloudevents import cloudevent_headers
from processor.contract.headers import CloudEventHeader
from tests.support.moved_deployment import differences, moved
from tests.support.random_histories import check, random_history
from tests.support.recorded_deployment import TOPICS, Recorded, violations


def enriched(recorded: Recorded) -> Recorded:
    """As workers write it that were told a source halfway."""
    makes = cloudevent_headers(TOPICS, "//shop.example/taskflow")
    for topic, headers_of in makes.items():
        for partition in range(recorded.partitions):
            records = recorded.of(topic.removeprefix(f"{TOPICS.prefix}."), partition)
            for n in range(len(records) // 2, len(records)):
                added = headers_of(records[n].value or b"")
                records[n] = replace(records[n], headers=(*records[n].headers, *added))
    return recorded


async def test_verify_replay_and_repartition_do_not_mind_them() -> None:
    history = enriched(random_history(400, seed=3, partitions=2))
    report = await history.verify(at_rest=False)
    assert report.ok, violations(report)
    findings = await check(history)
    assert findings.ok, findings.first[:3]
    assert findings.records["events"] == sum(len(history.of("audit", p)) for p in range(2))

    new = await moved(history, 3)
    report = await new.verify(at_rest=False)
    assert report.ok, violations(report)
    assert differences(history, new) == []
    # They name ids and places of the old side.
    copies = [r for name in ("audit", "outcomes") for p in range(3) for r in new.of(name, p)]
    assert copies
    assert not {name for record in copies for name, _ in record.headers} & set(CloudEventHeader)
