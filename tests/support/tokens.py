"""OAuth tokens, as an authority signs them and as somebody else makes them."""

import base64
import json
import time
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

AUDIENCE: Final = "kafka"
ISSUER: Final = "https://tokens.example"


class Issuer:
    """An authority with a key of its own, whose public half a broker reads as a JWKS."""

    def __init__(self, key_id: str = "key-1") -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key_id = key_id

    def jwks(self) -> str:
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self._key_id,
            "n": _base64(numbers.n.to_bytes(256, "big")),
            "e": _base64(numbers.e.to_bytes(3, "big")),
        }
        return json.dumps({"keys": [key]})

    def token(self, subject: str, life_s: float, **claims: Any) -> str:
        """A signed JWT that is valid for `life_s` seconds from now on."""
        header = {"alg": "RS256", "kid": self._key_id}
        said = f"{_part(header)}.{_part(_claims(subject, life_s, claims))}"
        signature = self._key.sign(said.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{said}.{_base64(signature)}"


def token(subject: str, life_s: float, **claims: Any) -> str:
    """A JWT without a signature that is valid for `life_s` seconds from now on."""
    return f"{_part({'alg': 'none'})}.{_part(_claims(subject, life_s, claims))}."


def _claims(subject: str, life_s: float, more: dict[str, Any]) -> dict[str, Any]:
    now_s = time.time()
    said = {"sub": subject, "aud": AUDIENCE, "iss": ISSUER}
    return {**said, "iat": now_s - 1, "exp": now_s + life_s, **more}


def _part(fields: dict[str, Any]) -> str:
    return _base64(json.dumps(fields).encode())


def _base64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
