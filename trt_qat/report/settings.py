"""What was set: the values that are not those of an untouched configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from trt_qat.config import Config


@dataclass(frozen=True)
class Changed:
    """A key with its value and the default, None where this version has no such key."""

    key: str
    value: JsonValue
    default: JsonValue


def changed_settings(settings: Mapping[str, JsonValue]) -> tuple[Changed, ...]:
    """Keys whose value is not the default of this version, in their order."""
    defaults = dict(_flat(Config().model_dump(mode="json")))
    return tuple(
        Changed(key, value, defaults.get(key))
        for key, value in _flat(settings)
        if key not in defaults or defaults[key] != value
    )


def _flat(sections: Mapping[str, JsonValue]) -> Iterator[tuple[str, JsonValue]]:
    for name, section in sections.items():
        if isinstance(section, dict):
            yield from ((f"{name}.{key}", value) for key, value in section.items())
        else:
            yield name, section
