"""What was forwarded, as the code at hand writes it, beside the copies that are recorded."""

from typing import Final

from processor.contract.dead_letters import FORWARDED_FROM
from processor.engine.batch import Forward, Outgoing
from processor.engine.codec import Record
from processor.ops.replay.differences import CHANGED, Difference, Findings, alike, fields_of

FORWARDED: Final = "(forwarded)"
"""In place of the command's kind, which is not looked at."""
COPIES_MAX: Final = 100_000
NOT_KEPT: Final = f"copies of forwarded commands, beyond the first {COPIES_MAX:,}"


class Copies:
    """Of all partitions: a command and its copy never lie on the same."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[int, Outgoing]] = {}
        self.found: dict[str, tuple[int, Outgoing]] = {}
        self.left_out = 0

    def made_one(self, forward: Forward) -> None:
        """The code at hand forwards this."""
        origin = _name(dict(forward.record.headers)[FORWARDED_FROM])
        if len(self.made) < COPIES_MAX:
            self.made[origin] = forward.partition, forward.record
        else:
            self.left_out += 1

    def found_one(self, record: Record, origin: bytes) -> None:
        """A copy that is recorded, by the header that says of what."""
        if len(self.found) < COPIES_MAX:
            copy = Outgoing(record.key, record.value, [*record.headers])
            self.found.setdefault(_name(origin), (record.partition, copy))

    def merge(self, other: "Copies") -> None:
        """Add those of other partitions."""
        self.made |= other.made
        self.found |= other.found
        self.left_out += other.left_out

    def compare(self, findings: Findings) -> None:
        """Those of which both sides are known."""
        if self.left_out:
            findings.not_compared[NOT_KEPT] += self.left_out
        for origin, (partition, now) in self.made.items():
            recorded = self.found.get(origin)
            if recorded is None:
                continue
            findings.records["copies"] += 1
            if recorded[0] == partition and alike(recorded[1], now):
                continue
            topic, source, offset = origin.rsplit("/", 2)
            fields = fields_of(recorded[1], now)
            if recorded[0] != partition:
                at = {"path": "(partition)", "recorded": recorded[0], "now": partition}
                fields.append(at)
            key = (recorded[1].key or b"").decode(errors="replace")
            place = (topic, int(source), int(offset))
            findings.touched[FORWARDED] += 1
            findings.add(Difference(FORWARDED, "copy", CHANGED, *place, key, fields))


def _name(origin: bytes) -> str:
    return origin.decode(errors="replace")
