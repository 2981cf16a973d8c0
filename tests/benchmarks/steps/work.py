"""The commands of managed steps, made as fast as bytes can be put together."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from processor.engine.partitioner import partition_of
from tests.benchmarks.throughput import OWNER
from tests.benchmarks.timers import flow_ids

TASK: Final = "classify"
HOLDER: Final = "bench:executor:1"
PER_FLOW: Final = 20

_COMMAND: Final = (
    b'{"kind":"%b","command_id":"%08x-0000-4000-8000-%012x","flow_id":"%b","issued_by":"%b"%b}'
)
CREATE, SCHEDULE, START, COMPLETE = range(1, 5)
_CREATE_FIELDS: Final = (
    b',"controller_id":"bench/inbox","goal":"triage the inbox","requester_origin":"user-1"'
    b',"state_json":{"messages":10,"processed":0}'
)
_SCHEDULE_FIELDS: Final = (
    b',"run_id":"run-%d","task":"%b","input_json":{"mail":%d,"subject":"please pay"}'
)


class Made(NamedTuple):
    """A command that is ready to be sent."""

    partition: int
    key: bytes
    value: bytes


class Work:
    """Steps by number: each flow has `PER_FLOW` of them, that follow each other."""

    def __init__(self, flows: int, partitions: int) -> None:
        self._keys: Sequence[bytes] = [flow_id.encode() for flow_id in flow_ids(flows)]
        self._partitions = partitions
        self._places = [partition_of(key, partitions) for key in self._keys]

    def create(self, flow: int) -> Made:
        return self._made(b"create_managed", CREATE, flow, flow, OWNER, _CREATE_FIELDS)

    def schedule(self, step: int, more: bytes = b"") -> Made:
        """`more` is what follows the input: further fields, as JSON, with a comma before each."""
        fields = _SCHEDULE_FIELDS % (step, TASK.encode(), step) + more
        return self._made(b"schedule_step", SCHEDULE, step, step // PER_FLOW, OWNER, fields)

    def start(self, step: int, attempt: int = 1) -> Made:
        number = step << 8 | attempt
        fields = b',"run_id":"run-%d"' % step
        return self._made(b"start_step", START, number, step // PER_FLOW, HOLDER, fields)

    def complete(self, step: int, attempt: int = 1) -> Made:
        fields = b',"run_id":"run-%d","attempt":%d,"result_json":{"label":"invoice"}'
        flow = step // PER_FLOW
        return self._made(b"complete_step", COMPLETE, step, flow, HOLDER, fields % (step, attempt))

    def place(self, flow_id: str, value: bytes) -> Made:
        """Any other command of any flow."""
        key = flow_id.encode()
        return Made(partition_of(key, self._partitions), key, value)

    def _made(
        self, kind: bytes, which: int, number: int, flow: int, by: str, fields: bytes
    ) -> Made:
        key = self._keys[flow]
        value = _COMMAND % (kind, which, number, key, by.encode(), fields)
        return Made(self._places[flow], key, value)


def step_of(key: bytes) -> int:
    """Which step a work item is about, by its key."""
    return int(key[key.index(b"/run-") + 5 :])
