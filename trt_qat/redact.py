"""User names, passwords and tokens are taken out of a text before anybody prints, logs or stores it."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Every repetition has an end, so that no text takes long.
_SCHEME = r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,20}:/{1,3}"  # two letters at least: C:/ is a drive; a path makes // to /
# The user and behind ":" a password. Both may hold "@", the password ":" and "/" as well: it ends at the last "@".
_URL_USER = re.compile(
    rf"{_SCHEME}(?P<secret>[^:/\s'\"]{{0,256}}:[^'\"]{{0,512}}@|[^:/\s'\"]{{1,256}}@)", re.IGNORECASE
)
_WHOLE_URL_USER = re.compile(rf"^{_SCHEME}(?P<secret>[^:/]*:.*@|[^:/]+@)", re.IGNORECASE | re.DOTALL)
# the scheme may be forgotten
_USER = re.compile(r"(?:(?<=^)|(?<=['\"(= ]))(?P<secret>[^:@/=\s'\"]{2,256}:(?!/)[^'\"\s]{0,512}@)")
_WHOLE_USER = re.compile(r"^(?P<secret>[^:@/]{2,}:(?!//).*@)", re.DOTALL)
_FIELD = re.compile(
    r"(?:(?:[?&;#][^=&;?#]{0,64}(?:user|pass|pwd|token|secret|key|auth|sig)[^=&;?#]{0,64})"
    r"|(?:(?<![^\s'\"])[\w-]{0,64}(?:user|pass|pw|token|secret)[\w-]{0,64}))"  # GStreamer: a word apart
    r"=(?P<secret>[^&;#'\"\s]*)",
    re.IGNORECASE,
)
_HIDDEN = "***"


def redacted(value: str) -> str:
    """A value as it was typed, e.g. a URL, but for who may open it."""
    is_url = re.match(_SCHEME, value, re.IGNORECASE)
    return _without_secrets(value, (_WHOLE_URL_USER if is_url else _WHOLE_USER, _FIELD))


def redacted_message(message: str) -> str:
    """The same for a sentence, in which values stand between quotes or spaces."""
    if "@" not in message and "=" not in message:  # nearly every one
        return message
    return _without_secrets(message, (_URL_USER, _USER, _FIELD))


def _without_secrets(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """All are looked for in the text as it is: where a token holds "@", what stands before it looks like a user."""
    spans = sorted(match.span("secret") for pattern in patterns for match in pattern.finditer(text))
    parts: list[str] = []
    done = 0
    for start, end in spans:
        if start >= done:
            parts += [text[done:start], _HIDDEN]
        if end > done:
            done = end
            parts[-1] = f"{_HIDDEN}@" if text[:end].endswith("@") else _HIDDEN
    return "".join([*parts, text[done:]])
