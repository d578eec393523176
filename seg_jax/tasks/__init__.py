"""What a model is trained and judged for."""

import operator

import ml_collections

from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.errors import UserError, nearest
from seg_jax.models import build_model
from seg_jax.tasks.base import Task
from seg_jax.tasks.depth import DepthTask
from seg_jax.tasks.instance import InstanceTask
from seg_jax.tasks.panoptic import PanopticTask
from seg_jax.tasks.scene import SceneTask
from seg_jax.tasks.semantic import SemanticTask

# What trains and judges a decoder.
OF_DECODER = {
  'semantic': SemanticTask,
  'depth': DepthTask,
  'instance': InstanceTask,
  'panoptic': PanopticTask,
}
# Of models without a choice, if not 'semantic'.
DECODERS = {'mask_rcnn': ('instance',), 'panoptic_fpn': ('panoptic',)}
OF_OBJECTS = ('instance', 'panoptic')


def build_task(config: ml_collections.ConfigDict, info: DatasetInfo, class_weights=None) -> Task:
  """The task that `config` describes, for a dataset's classes.

  `config.task` is the name of one decoder, or 'scene' for all that the model has.

  Raises:
    UserError: an unknown task, a decoder that is unknown or that the model has not, or what is for
      two classes, or for objects, alone where there are others, or none.
  """
  of_two = {'sigmoid': False, 'inference.threshold': 0.5}
  for key, default in of_two.items() if info.num_classes != 2 else ():
    value = operator.attrgetter(key)(config)
    if value != default:
      raise UserError(
        f'{key} is {value}; expected {default}, as {info.name} has {info.num_classes} classes'
      )
  model = build_model(config, info.num_classes, len(info.things))
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
    'max_instances': config.data.max_instances,
    'min_score': config.inference.min_score,
    'min_stuff_area': config.inference.min_stuff_area,
  }
  if config.task not in (*OF_DECODER, 'scene'):
    raise UserError(f'task is {config.task!r}{nearest(config.task, (*OF_DECODER, "scene"))}')
  there = config.model.get('decoders', DECODERS.get(config.model.name, ('semantic',)))
  wanted = there if config.task == 'scene' else (config.task,)
  for name in wanted:
    if name not in OF_DECODER:
      raise UserError(f'model.decoders has {name!r}{nearest(name, OF_DECODER)}')
    if name not in there:
      raise UserError(
        f'task is {name!r}, but {config.model.name} has the decoders {", ".join(there)}; expected '
        f'{_having(name)}'
      )
    if name in OF_OBJECTS and config.task == 'scene':
      raise UserError(
        f"task is 'scene', and {config.model.name} has one decoder; expected {name!r}"
      )
    if name in OF_OBJECTS and config.inference.crf != 'none':
      raise UserError(
        f"inference.crf is {config.inference.crf!r}; expected 'none', as task is {name!r}"
      )
    if name in OF_OBJECTS and not info.things:
      raise UserError(
        f'task is {name!r}, but {info.name} tells no objects apart; expected a dataset that does'
      )
    if name == 'panoptic' and not config.model.masks:
      raise UserError("model.masks is False; expected True, as task is 'panoptic'")
  parts = {name: OF_DECODER[name](**fields) for name in wanted}
  return SceneTask(**fields, parts=parts) if config.task == 'scene' else parts[config.task]


def _having(decoder: str) -> str:
  models = [repr(model) for model, decoders in DECODERS.items() if decoder in decoders]
  if models:
    return f'model.name {" or ".join(models)}'
  return "a model such as 'several_decoders', with it in model.decoders"
