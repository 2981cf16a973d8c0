"""A proof among view workers that they share a secret, without sending it.

A question carries a nonce and a code over the nonce, the path, and the address that is asked: a
worker at any other address can neither answer it nor ask it on. An answer carries a code over that
nonce, its status and the digest of its body; each event of a stream, over the nonce and the event's
number. So an answer is believed only if a worker that knows the secret made it for this question.
"""

import hmac
import secrets
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from yarl import URL

QUESTION: Final = "Taskflow-Peer"
RESPONSE: Final = "Taskflow-Peer-Answer"
_NONCE_BYTES: Final = 16
_KEY_USE: Final = b"taskflow-peer-1"


class ForgedError(ValueError):
    """A question or an answer does not come from a worker that knows the secret."""


def address_of(url: str) -> str:
    """The address of a view worker, in one spelling."""
    return str(URL(url)).rstrip("/")


class PeerKey:
    """What follows from the secret that the view workers share."""

    def __init__(self, secret: str) -> None:
        self._key = blake2b(secret.encode(), person=_KEY_USE, digest_size=32).digest()

    def ask(self, address: str, path: str) -> tuple["Exchange", str]:
        """A question for the worker at `address`, and its header QUESTION."""
        nonce = secrets.token_hex(_NONCE_BYTES)
        return Exchange(self._key, nonce), f"{nonce} {self._code(nonce, address, path)}"

    def admit(self, header: str, address: str, path: str) -> "Exchange":
        """The question with this header to the worker at `address`. Raises ForgedError."""
        nonce, _, code = header.partition(" ")
        if len(nonce) != 2 * _NONCE_BYTES or not _same(code, self._code(nonce, address, path)):
            raise ForgedError
        return Exchange(self._key, nonce)

    def _code(self, nonce: str, address: str, path: str) -> str:
        return _code(self._key, b"question", nonce.encode(), address.encode(), path.encode())


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer, on either side."""

    key: bytes
    nonce: str

    def sign(self, status: int, body: bytes) -> str:
        """The header ANSWER of an answer."""
        digest = _digest(body)
        return f"{digest} {self._response_code(status, digest)}"

    def expect(self, header: str, status: int) -> str:
        """The digest that the body of an answer with this header has. Raises ForgedError, so that
        no body of a stranger's is read."""
        digest, _, code = header.partition(" ")
        if not _same(code, self._response_code(status, digest)):
            raise ForgedError
        return digest

    def check(self, digest: str, body: bytes) -> None:
        """Raises ForgedError if the body is not the one that was signed."""
        if not _same(digest, _digest(body)):
            raise ForgedError

    def event_code(self, sequence: int, name: str, event_id: str, data: bytes) -> str:
        """The code of the event with this number, from 0, of a stream."""
        return _code(
            self.key,
            b"event",
            self.nonce.encode(),
            str(sequence).encode(),
            name.encode(),
            event_id.encode(),
            data,
        )

    def check_event(self, code: str, sequence: int, name: str, event_id: str, data: bytes) -> None:
        """Raises ForgedError."""
        if not _same(code, self.event_code(sequence, name, event_id, data)):
            raise ForgedError

    def _response_code(self, status: int, digest: str) -> str:
        return _code(
            self.key, b"answer", self.nonce.encode(), str(status).encode(), digest.encode()
        )


def _code(key: bytes, *parts: bytes) -> str:
    """An authentication code over the parts, each with its length."""
    code = blake2b(key=key, digest_size=32)
    for part in parts:
        code.update(len(part).to_bytes(8, "big") + part)
    return code.hexdigest()


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=32).hexdigest()


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())
