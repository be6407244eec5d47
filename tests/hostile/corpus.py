"""All hostile inputs."""

from __future__ import annotations

from collections import Counter

import bad_checkpoints
import bad_datasets
import bad_exports
import bad_networks
import bad_pictures
import bad_places
import bad_settings
import bad_states
from case import Case

MODULES = (
    bad_networks, bad_checkpoints, bad_datasets, bad_pictures, bad_settings, bad_exports, bad_states, bad_places,
)  # fmt: skip


def all_cases() -> list[Case]:
    """Every case; two of one name are a mistake of the corpus."""
    cases = [case for module in MODULES for case in module.cases()]
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        raise ValueError(f"case names that stand there twice: {', '.join(twice)}")
    return cases
