"""What a model is trained and judged for."""

import operator

import ml_collections

from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.errors import UserError, nearest
from seg_jax.models import build_model
from seg_jax.tasks.base import Task
from seg_jax.tasks.depth import DepthTask
from seg_jax.tasks.scene import SceneTask
from seg_jax.tasks.semantic import SemanticTask

OF_DECODER = {'semantic': SemanticTask, 'depth': DepthTask}  # what trains and judges it


def build_task(config: ml_collections.ConfigDict, info: DatasetInfo, class_weights=None) -> Task:
  """The task that `config` describes, for a dataset's classes.

  `config.task` is the name of one decoder, or 'scene' for all that the model has.

  Raises:
    UserError: an unknown task, a decoder that is unknown or that the model has not, or what is for
      two classes alone where there are others.
  """
  of_two = {'sigmoid': False, 'inference.threshold': 0.5}
  for key, default in of_two.items() if info.num_classes != 2 else ():
    value = operator.attrgetter(key)(config)
    if value != default:
      raise UserError(
        f'{key} is {value}; expected {default}, as {info.name} has {info.num_classes} classes'
      )
  model = build_model(config, info.num_classes)
  fields = {
    'model': model,
    'info': info,
    'loss_config': config.loss,
    'class_weights': class_weights,
    'mean': config.data.mean,
    'std': config.data.std,
    'image_scale': config.data.image_scale,
    'photometric': config.data.photometric,
    'bits': config.data.bits,
    'max_depth': config.data.max_depth,
    'crf': config.inference.crf,
    'threshold': config.inference.threshold,
  }
  if config.task not in (*OF_DECODER, 'scene'):
    raise UserError(f'task is {config.task!r}{nearest(config.task, (*OF_DECODER, "scene"))}')
  there = config.model.get('decoders', ('semantic',))
  wanted = there if config.task == 'scene' else (config.task,)
  for name in wanted:
    if name not in OF_DECODER:
      raise UserError(f'model.decoders has {name!r}{nearest(name, OF_DECODER)}')
    if name not in there:
      raise UserError(
        f'task is {name!r}, but {config.model.name} has the decoders {", ".join(there)}; expected '
        "a model such as 'several_decoders', with it in model.decoders"
      )
  parts = {name: OF_DECODER[name](**fields) for name in wanted}
  return SceneTask(**fields, parts=parts) if config.task == 'scene' else parts[config.task]
