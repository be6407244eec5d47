"""Every target by its name."""

from __future__ import annotations

import data_targets
import exported_targets
import model_targets
import state_targets
import text_targets

TARGETS = {
    target.name: target
    for targets in (text_targets, data_targets, model_targets, exported_targets, state_targets)
    for target in targets.TARGETS
}
