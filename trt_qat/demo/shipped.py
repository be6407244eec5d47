"""What the package brings for its demo, beside what it draws: a trained detector of those signs, and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DETECTOR: Final = Path(__file__).with_name("detector.safetensors")
SETTINGS: Final = Path(__file__).with_name("settings.yaml")
