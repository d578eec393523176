"""What a model is trained and judged for."""

import ml_collections

from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.models import build_model
from seg_jax.tasks.semantic import SemanticTask


def build_task(
  config: ml_collections.ConfigDict, info: DatasetInfo, class_weights=None
) -> SemanticTask:
  """The task that `config` describes, for a dataset's classes."""
  return SemanticTask(
    model=build_model(config, info.num_classes),
    info=info,
    loss_config=config.loss,
    class_weights=class_weights,
    mean=config.data.mean,
    std=config.data.std,
    image_scale=config.data.image_scale,
    photometric=config.data.photometric,
    bits=config.data.bits,
  )
