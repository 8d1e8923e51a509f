"""Training: the loop, the evaluation, thresholds, and how a run is built.

What only some scripts need is imported from its file, so that a faulty config is answered soon.
"""

from trainer.evaluate import Meters, evaluate, progress
from trainer.trainer import Trainer

__all__ = ["Meters", "Trainer", "evaluate", "progress"]
