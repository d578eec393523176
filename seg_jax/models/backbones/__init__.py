"""Classifiers' nets that segmentation systems look through, by the name a config gives them.

Each is a module whose call gives a dict of features by the stride that they have in the classifier,
and whose `output_stride` makes the last of them denser, à trous, without changing a parameter.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from seg_jax import errors
from seg_jax.models.backbones.alexnet import AlexNet
from seg_jax.models.backbones.hrnet import HighResolutionNet
from seg_jax.models.backbones.mobilenet_v2 import MobileNetV2
from seg_jax.models.backbones.resnet import ResNet
from seg_jax.models.backbones.vgg import VGG16
from seg_jax.models.backbones.xception import Xception

BACKBONES = {
  **{f'resnet{depth}': functools.partial(ResNet, depth=depth) for depth in (18, 34, 50, 101, 152)},
  **{f'hrnet_w{n}': functools.partial(HighResolutionNet, width=n) for n in (18, 32, 48)},
  'alexnet': AlexNet,
  'mobilenet_v2': MobileNetV2,
  'vgg16': VGG16,
  'xception65': Xception,
}
OUTPUT_STRIDES = (4, 8, 16, 32)


def build_backbone(
  name: str, /, output_stride: int = 32, norm: str = 'batch', dtype=jnp.float32, **fields
) -> nn.Module:
  """The backbone `name`; `fields` are further ones of its own, such as its width.

  `name='backbone'` among them is what Flax calls the module in a larger one.

  Raises:
    UserError: an unknown name, an output stride that it cannot have, or a field that it has not.
  """
  known = _defaults(name)
  for field, value in fields.items():
    if field not in known:
      raise errors.UserError(f'model.{field} is {value!r}, but {name} has no {field}')
  deeper = range(fields.get('extra_stages', 0))
  strides = (*OUTPUT_STRIDES, *(2 * OUTPUT_STRIDES[-1] << stage for stage in deeper))
  if output_stride not in strides:
    raise errors.UserError(f'model.output_stride is {output_stride}; expected one of {strides}')
  return BACKBONES[name](output_stride=output_stride, norm=norm, dtype=dtype, **fields)


def backbone_of(system: nn.Module, **fields) -> nn.Module:
  """The submodule `backbone` that the fields of a system describe, with `fields` of its own.

  These are `backbone`, its name; `backbone_width`, which multiplies its channels; `output_stride`;
  `norm`, instead of which it has frozen batch norm if `frozen_backbone_norm`; and `dtype`.

  Raises:
    UserError: as `build_backbone`.
  """
  if system.backbone_width != 1:
    width = _defaults(system.backbone)['width']
    fields['width'] = type(width)(width * system.backbone_width)
  norm = 'frozen_batch' if system.frozen_backbone_norm else system.norm
  return build_backbone(
    system.backbone, system.output_stride, norm, system.dtype, name='backbone', **fields
  )


def _defaults(name: str) -> dict:
  """The fields of the backbone `name`, and their defaults."""
  if name not in BACKBONES:
    raise errors.UserError(f'model.backbone is {name!r}{errors.nearest(name, BACKBONES)}')
  module = getattr(BACKBONES[name], 'func', BACKBONES[name])
  chosen = getattr(BACKBONES[name], 'keywords', {})
  return {field.name: field.default for field in dataclasses.fields(module)} | chosen
