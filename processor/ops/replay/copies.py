"""Compare the copies of forwarded commands with the recorded ones."""

from hashlib import blake2b
from typing import Final, NamedTuple

from processor.contract.headers import RecordPlace, forwarded_from
from processor.engine.batch import Forward, Outgoing
from processor.engine.codec import Record
from processor.ops.replay.differences import CHANGED, Difference, Field, Findings, fields_of

FORWARDED: Final = "(forwarded)"
"""In place of the command's kind, which is not looked at."""
COPIES_MAX: Final = 100_000
KEPT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of copies that are kept whole, to name the fields that differ; of others there is a digest."""
NOT_KEPT: Final = f"copies of forwarded commands, beyond the first {COPIES_MAX:,}"


class ForwardedCopy(NamedTuple):
    """`record` is None where only the digest is kept."""

    partition: int
    digest: bytes
    record: Outgoing | None


class Copies:
    """Of all partitions: a command and its copy never lie on the same.

    Any sender may write a record that names another as its original, so that each original has
    as many recorded copies as there are such records: one that is right is enough.
    """

    def __init__(self) -> None:
        self.made: dict[RecordPlace, ForwardedCopy] = {}
        self.found: dict[RecordPlace, list[ForwardedCopy]] = {}
        self._found = 0
        self._kept_bytes = 0
        self.left_out = 0

    def made_one(self, forward: Forward) -> None:
        """Note that the code at hand forwards a command."""
        origin = forwarded_from(forward.record.headers)
        assert origin is not None, "a forward names its original"
        if len(self.made) < COPIES_MAX:
            self.made[origin] = self._copy(forward.partition, forward.record)
        else:
            self.left_out += 1

    def found_one(self, record: Record, origin: RecordPlace) -> None:
        """Note a recorded copy of `origin`."""
        if self._found < COPIES_MAX:
            self._found += 1
            copy = Outgoing(record.key, record.value, [*record.headers])
            self.found.setdefault(origin, []).append(self._copy(record.partition, copy))

    def merge(self, other: "Copies") -> None:
        """Add those of other partitions."""
        self.made |= other.made
        for origin, copies in other.found.items():
            self.found.setdefault(origin, []).extend(copies)
        self.left_out += other.left_out

    def compare(self, findings: Findings) -> None:
        """Compare those of which both sides are known."""
        if self.left_out:
            findings.not_compared[NOT_KEPT] += self.left_out
        for origin, now in self.made.items():
            recorded = self.found.get(origin)
            if recorded is None:
                continue
            findings.records["copies"] += 1
            if any(one[:2] == now[:2] for one in recorded):
                continue
            first = recorded[0]
            key = ((first.record or now.record or _UNKNOWN).key or b"").decode(errors="replace")
            findings.touched[FORWARDED] += 1
            fields = _fields(first, now)
            findings.add(Difference(FORWARDED, "copy", CHANGED, *origin, key, fields))

    def _copy(self, partition: int, record: Outgoing) -> ForwardedCopy:
        size_bytes, digest = 0, blake2b(digest_size=16)
        names = (part for name, value in record.headers for part in (name.encode(), value))
        for part in (record.key, record.value, *names):
            size_bytes += len(part or b"")
            digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
        whole = self._kept_bytes + size_bytes <= KEPT_MAX_BYTES
        self._kept_bytes += size_bytes if whole else 0
        return ForwardedCopy(partition, digest.digest(), record if whole else None)


_UNKNOWN: Final = Outgoing(None, None, ())


def _fields(recorded: ForwardedCopy, now: ForwardedCopy) -> list[Field]:
    fields: list[Field] = []
    if recorded.record is not None and now.record is not None:
        fields += fields_of(recorded.record, now.record)
    elif recorded.digest != now.digest:
        fields.append({"path": "(bytes)", "recorded": "not kept", "now": "not kept"})
    if recorded.partition != now.partition:
        fields.append({"path": "(partition)", "recorded": recorded.partition, "now": now.partition})
    return fields
