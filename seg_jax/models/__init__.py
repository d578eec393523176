"""Every system, by the name that `config.model.name` gives it."""

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from seg_jax import errors
from seg_jax.models.conv_only import ConvOnly
from seg_jax.models.crf_rnn import CRFRNN
from seg_jax.models.deconvnet import DeconvNet
from seg_jax.models.deeplab_v3 import DeepLabV3
from seg_jax.models.deeplab_v3plus import DeepLabV3Plus
from seg_jax.models.fcn import FCN
from seg_jax.models.fcn_resnet import FCNResNet
from seg_jax.models.hrnet import HRNet
from seg_jax.models.mask_rcnn import MaskRCNN
from seg_jax.models.multi_scale import MultiScale
from seg_jax.models.one_logit import OneLogit
from seg_jax.models.panoptic_fpn import PanopticFPN
from seg_jax.models.recurrent_scene import RecurrentScene
from seg_jax.models.refinenet import RefineNet
from seg_jax.models.segnet import SegNet, SegNetBasic
from seg_jax.models.several_decoders import SeveralDecoders
from seg_jax.models.sliding_window import SlidingWindow
from seg_jax.models.unet import UNet

MODELS = {
  'conv_only': ConvOnly,
  'crf_rnn': CRFRNN,
  'deconvnet': DeconvNet,
  'deeplab_v3': DeepLabV3,
  'deeplab_v3plus': DeepLabV3Plus,
  'fcn': FCN,
  'fcn_resnet': FCNResNet,
  'hrnet': HRNet,
  'mask_rcnn': MaskRCNN,
  'multi_scale': MultiScale,
  'panoptic_fpn': PanopticFPN,
  'recurrent_scene': RecurrentScene,
  'refinenet': RefineNet,
  'segnet': SegNet,
  'segnet_basic': SegNetBasic,
  'several_decoders': SeveralDecoders,
  'sliding_window': SlidingWindow,
  'unet': UNet,
}
OF_OBJECTS = ('mask_rcnn', 'panoptic_fpn')  # they have things and stuff, each of a number
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build_model(
  config: ml_collections.ConfigDict, num_classes: int, num_things: int | None = None
) -> nn.Module:
  """The model that `config.model` describes: its fields are the module's, but for `pretrained`.

  That of 'crf_rnn' has another one inside, which `config.model.system` describes likewise. With
  `config.sigmoid` the first class has no logit of its own. Of the classes, `num_things` are those
  of objects; all but one, where that is not told.

  Raises:
    UserError: an unknown `model.name`, `model.system.name` or `dtype`, or a sigmoid of a model that
      cannot have one.
  """
  fields = config.model.to_dict()
  fields.pop('pretrained', None)
  if fields['name'] != 'crf_rnn':
    counts = num_classes, num_classes - 1 if num_things is None else num_things
    return _build(fields, config, counts, 'model.name', MODELS)
  known = [name for name in MODELS if name not in ('crf_rnn', *OF_OBJECTS)]
  system = _build(fields.pop('system'), config, (num_classes, 0), 'model.system.name', known)
  del fields['name']
  return CRFRNN(num_classes=num_classes, system=system, std=config.data.std, **fields)


def _build(fields, config, counts, key, known):
  """`counts` of all classes, and of those that are things."""
  name = fields.pop('name')
  if name not in known:
    raise errors.UserError(f'{key} is {name!r}{errors.nearest(name, known)}')
  if config.dtype not in DTYPES:
    raise errors.UserError(f'dtype is {config.dtype!r}{errors.nearest(config.dtype, DTYPES)}')
  fields['dtype'] = DTYPES[config.dtype]
  if config.sigmoid and name in ('recurrent_scene', *OF_OBJECTS):
    why = 'hears its own logits' if name == 'recurrent_scene' else 'tells objects apart'
    raise errors.UserError(f'{key} is {name!r}, which {why}; expected no sigmoid')
  num_classes, num_things = counts
  if name == 'panoptic_fpn':
    fields['num_stuff'] = num_classes - num_things
  if name in OF_OBJECTS:
    return MODELS[name](num_things=num_things, **fields)
  if not config.sigmoid:
    return MODELS[name](num_classes=num_classes, **fields)
  return OneLogit(MODELS[name](num_classes=num_classes - 1, **fields))
