"""Secrets out of text that leaves the program in a log, an error record or a message. Pure.

Known secrets are found literally, and percent-encoded, in base64 and JSON-escaped; what merely looks like one by its
shape (`sk-…`, `Bearer …`, `key=…` in a URL, `//user:password@`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

REPLACEMENT: Final = "[redacted]"
MIN_SECRET_CHARS: Final = 6
"""A shorter "secret" (a placeholder such as "none") would redact ordinary words."""

_SHAPES: Final = (
    r"sk-[A-Za-z0-9_-]{8,}",
    r"(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}",
    r"(?<=api-key: )\S+",
    r"(?<=[?&]key=)[^&\s\"']+",
    r"(?<=[?&]api_key=)[^&\s\"']+",
    r"(?<=[?&]api-key=)[^&\s\"']+",
    r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)",
)


class Redactor:
    """Replaces secrets."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= MIN_SECRET_CHARS for form in _forms(secret)}
        # The longest first: an encoded form may contain the plain one.
        literal = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
        self._pattern = re.compile("|".join([*literal, *_SHAPES]))

    def redact(self, text: str) -> str:
        """The text without secrets."""
        return self._pattern.sub(REPLACEMENT, text)

    def redact_json(self, value: Any) -> Any:
        """A copy of a JSON-able value without secrets, keys included."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, dict):
            return {self.redact(key) if isinstance(key, str) else key: self.redact_json(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact_json(item) for item in value]
        return value


def _forms(secret: str) -> set[str]:
    plain = secret.encode()
    encoded = base64.b64encode(plain).decode().rstrip("=")
    return {secret, quote(secret, safe=""), encoded, secret.replace("\\", "\\\\").replace('"', '\\"')}
