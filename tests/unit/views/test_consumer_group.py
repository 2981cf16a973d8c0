"""What the workers' group says of a deployment that nobody works on."""

from aiokafka import TopicPartition

from processor.contract.topics import Topics
from processor.views.consumer_group import GroupState

TOPICS = Topics("t")


def ends(commands: int, control: int) -> dict[TopicPartition, int]:
    return {
        TopicPartition(topic, partition): end
        for topic, end in ((TOPICS.commands, commands), (TOPICS.control, control))
        for partition in (0, 1)
    }


def test_without_a_worker_every_partition_is_unassigned_and_all_commands_wait() -> None:
    state = GroupState("Empty", {}, {}, ends(5, 1), TOPICS)
    assert state.unassigned([0, 1]) == [0, 1]
    assert state.undecided([0, 1]) == 12


def test_with_workers_only_what_they_have_not_decided_waits() -> None:
    committed = {tp: end - 1 for tp, end in ends(5, 1).items()}
    state = GroupState("Stable", {0: "w at h", 1: "w at h"}, committed, ends(5, 1), TOPICS)
    assert state.unassigned([0, 1]) == []
    assert state.undecided([0, 1]) == 4
    assert state.undecided([1]) == 2


def test_while_kafka_does_not_answer_nothing_is_claimed() -> None:
    state = GroupState(topics=TOPICS)
    assert (state.unassigned([0]), state.undecided([0])) == (None, None)
