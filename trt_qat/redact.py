"""User names, passwords and tokens are taken out of a text before anybody prints, logs or stores it."""

from __future__ import annotations

import re

# Every repetition has an end, so that no text takes long.
_SCHEME = r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,20}:/{1,3}"  # two letters at least: C:/ is a drive; a path makes // to /
# The user, and behind ":" a password, which may hold ":", "/" and "@" itself: it ends at the last "@".
_URL_USER = re.compile(rf"({_SCHEME})(?:[^:@/\s'\"]{{1,256}}@|[^:@/\s'\"]{{0,256}}:[^'\"]{{0,512}}@)", re.IGNORECASE)
_WHOLE_URL_USER = re.compile(rf"^({_SCHEME})(?:[^:@/]+@|[^:@/]*:.*@)", re.IGNORECASE | re.DOTALL)
_USER = re.compile(r"(?:(?<=^)|(?<=['\"(= ]))[^:@/=\s'\"]{2,256}:(?!/)[^'\"\s]{0,512}@")  # the scheme may be forgotten
_WHOLE_USER = re.compile(r"^[^:@/]{2,}:(?!//).*@", re.DOTALL)
_FIELD = re.compile(
    r"((?:[?&;#][^=&;?#]{0,64}(?:user|pass|pwd|token|secret|key|auth|sig)[^=&;?#]{0,64})"
    r"|(?:(?<![^\s'\"])[\w-]{0,64}(?:user|pass|pw|token|secret)[\w-]{0,64}))=[^&;#'\"\s]*",  # GStreamer: a word apart
    re.IGNORECASE,
)
_HIDDEN = "***"


def redacted(value: str) -> str:
    """A value as it was typed, e.g. a URL, but for who may open it."""
    is_url = re.match(_SCHEME, value, re.IGNORECASE)
    value = _WHOLE_URL_USER.sub(rf"\1{_HIDDEN}@", value) if is_url else _WHOLE_USER.sub(f"{_HIDDEN}@", value)
    return _FIELD.sub(rf"\1={_HIDDEN}", value)


def redacted_message(message: str) -> str:
    """The same for a sentence, in which values stand between quotes or spaces."""
    if "@" not in message and "=" not in message:  # nearly every one
        return message
    return _FIELD.sub(rf"\1={_HIDDEN}", _USER.sub(f"{_HIDDEN}@", _URL_USER.sub(rf"\1{_HIDDEN}@", message)))
