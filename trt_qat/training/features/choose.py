"""Which features a ``qat`` section asks for. A new one is a file beside this one and a row here.

Those of other packages are rows of ``trt_qat.registry.FEATURES``, and take part where ``qat.features`` names them.
"""

from __future__ import annotations

from trt_qat import registry
from trt_qat.checkpoint import Model
from trt_qat.config import QatSection
from trt_qat.training.features.base import Feature, Start
from trt_qat.training.features.batchnorm import FrozenBatchNorm
from trt_qat.training.features.dampening import Dampening
from trt_qat.training.features.distillation import Distillation
from trt_qat.training.features.error_monitor import QuantizationErrorMonitor
from trt_qat.training.features.learning_rate import QATLearningRateScheduler
from trt_qat.training.features.lsq import Lsq
from trt_qat.training.features.progressive import ProgressiveQuantization

# In this order their hooks are called and their loss terms summed. Floating-point sums depend on the order: a row moved
# is another result in the last bit. The monitor is last, so that it sees what the others made.
FEATURES: tuple[type[Feature], ...] = (
    QATLearningRateScheduler,
    Distillation,
    Dampening,
    Lsq,
    ProgressiveQuantization,
    FrozenBatchNorm,
    QuantizationErrorMonitor,
)


def features_from_section(section: QatSection, start: Start) -> list[Feature]:
    """The features that are switched on, made for one run."""
    made = [kind.configured(section, start) for kind in _kinds(section)]
    return [feature for feature in made if feature is not None]


def check_features(section: QatSection, model: Model) -> None:
    """Refuse settings that this model cannot be trained with, before anything long is done.

    Args:
        model: where the run is to start; it may still be float.

    Raises:
        ArtifactError: ``qat.bn=freeze`` of folded weights.
        ConfigError: a feature of another package cannot be loaded.
    """
    for kind in _kinds(section):
        kind.check(section, model)


def _kinds(section: QatSection) -> list[type[Feature]]:
    others: list[type[Feature]] = [registry.FEATURES.load(name) for name in section.features]
    return [*FEATURES[:-1], *others, FEATURES[-1]]  # the monitor sees what they made
