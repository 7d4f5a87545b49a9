"""Train dense and sparse Diffusion Transformers; needs the extra ``train``.

from sparsify.training import TrainConfig, train

result = train(model, Policy.auto(), "mnist", TrainConfig(steps=10_000), "out")
"""

from .checkpoint import latest
from .config import TrainConfig
from .data import Images
from .ema import Ema
from .reporter import read_metrics
from .sources import load_images
from .trainer import StepDone, TrainResult, train

__all__ = ["Ema", "Images", "StepDone", "TrainConfig", "TrainResult", "latest", "load_images", "read_metrics", "train"]
