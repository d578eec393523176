"""What PyTorch's models call the layers that have names of our own here: a table a net.

A line goes from our layer to theirs, and the first one that matches counts, in both directions.
`{}` stands for a number that is the same on both sides, `{-1}` for one less, and `*` for anything,
in what nobody else has. Behind a layer's name may stand what theirs has and ours has not: `matrix`,
a fully connected layer where ours is a convolution over the whole map, `pixel`, a 1x1 convolution
where ours is fully connected, `bias`, one before a batch norm, which takes it away again, or
`transposed`, a transposed convolution's kernel, which has its inputs first.
"""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from seg_jax import errors
from seg_jax.models import MODELS
from seg_jax.models.backbones import mobilenet_v2, vgg

Names = Mapping[str, str | None]

UNIT = {
  'conv{}': 'conv{}',
  'norm{}': 'bn{}',
  'shortcut_conv': 'downsample.0',
  'shortcut_norm': 'downsample.1',
}


def under(names: Names, ours: str, theirs: str) -> Names:
  """The lines of a part, inside of what is called `ours` here and `theirs` there."""
  return {f'{ours}{a}': b if b is None else f'{theirs}{b}' for a, b in names.items()}


# ResNet. Stages 5 to 7 are those of DeepLab v3's cascade.

CASCADE = {f'layer{stage}_*': None for stage in (5, 6, 7)}
RESNET = CASCADE | {'conv1': 'conv1', 'norm1': 'bn1', **under(UNIT, 'layer{}_{}/', 'layer{}.{}.')}
RESNET_HUGGING_FACE = CASCADE | {
  'conv1': 'embedder.embedder.convolution',
  'norm1': 'embedder.embedder.normalization',
  'layer{}_{}/conv{}': 'encoder.stages.{-1}.layers.{}.layer.{-1}.convolution',
  'layer{}_{}/norm{}': 'encoder.stages.{-1}.layers.{}.layer.{-1}.normalization',
  'layer{}_{}/shortcut_conv': 'encoder.stages.{-1}.layers.{}.shortcut.convolution',
  'layer{}_{}/shortcut_norm': 'encoder.stages.{-1}.layers.{}.shortcut.normalization',
}
RESNET_V2 = CASCADE | {  # with norm and ReLU before the convolutions
  'conv1': 'stem.conv',
  'layer{}_{}/norm{}': 'stages.{-1}.blocks.{}.norm{}',
  'layer{}_{}/conv{}': 'stages.{-1}.blocks.{}.conv{}',
  'layer{}_{}/shortcut_conv': 'stages.{-1}.blocks.{}.downsample.conv',
  'norm_32': 'norm',
}

# MobileNetV2. Its first block does not expand; timm numbers the others by stage and unit.

MOBILENET_V2 = {
  'conv0': 'features.0.0',
  'norm0': 'features.0.1',
  'block1/depthwise_conv': 'features.1.conv.0.0',
  'block1/depthwise_norm': 'features.1.conv.0.1',
  'block1/project_conv': 'features.1.conv.1',
  'block1/project_norm': 'features.1.conv.2',
  'block{}/expand_conv': 'features.{}.conv.0.0',
  'block{}/expand_norm': 'features.{}.conv.0.1',
  'block{}/depthwise_conv': 'features.{}.conv.1.0',
  'block{}/depthwise_norm': 'features.{}.conv.1.1',
  'block{}/project_conv': 'features.{}.conv.2',
  'block{}/project_norm': 'features.{}.conv.3',
}
MOBILENET_V2_HEAD = {
  'head_conv': 'features.18.0',
  'head_norm': 'features.18.1',
  'fc': 'classifier.1',
}
_UNITS = [
  (stage, k) for stage, (*_, units, _) in enumerate(mobilenet_v2.STAGES) for k in range(units)
]
MOBILENET_V2_TIMM = {
  'conv0': 'conv_stem',
  'norm0': 'bn1',
  'block1/depthwise_conv': 'blocks.0.0.conv_dw',
  'block1/depthwise_norm': 'blocks.0.0.bn1',
  'block1/project_conv': 'blocks.0.0.conv_pw',
  'block1/project_norm': 'blocks.0.0.bn2',
} | {
  f'block{number}/{ours}': f'blocks.{stage}.{k}.{theirs}'
  for number, (stage, k) in enumerate(_UNITS, start=1)
  for ours, theirs in {
    'expand_conv': 'conv_pw',
    'expand_norm': 'bn1',
    'depthwise_conv': 'conv_dw',
    'depthwise_norm': 'bn2',
    'project_conv': 'conv_pwl',
    'project_norm': 'bn3',
  }.items()
  if number > 1
}
MOBILENET_V2_HEAD_TIMM = {'head_conv': 'conv_head', 'head_norm': 'bn2', 'fc': 'classifier'}
MOBILENET_V2_HUGGING_FACE = {
  'conv0': 'conv_stem.first_conv.convolution',
  'norm0': 'conv_stem.first_conv.normalization',
  'block1/depthwise_conv': 'conv_stem.conv_3x3.convolution',
  'block1/depthwise_norm': 'conv_stem.conv_3x3.normalization',
  'block1/project_conv': 'conv_stem.reduce_1x1.convolution',
  'block1/project_norm': 'conv_stem.reduce_1x1.normalization',
  'block{}/expand_conv': 'layer.{-2}.expand_1x1.convolution',
  'block{}/expand_norm': 'layer.{-2}.expand_1x1.normalization',
  'block{}/depthwise_conv': 'layer.{-2}.conv_3x3.convolution',
  'block{}/depthwise_norm': 'layer.{-2}.conv_3x3.normalization',
  'block{}/project_conv': 'layer.{-2}.reduce_1x1.convolution',
  'block{}/project_norm': 'layer.{-2}.reduce_1x1.normalization',
}
MOBILENET_V2_HEAD_HUGGING_FACE = {
  'head_conv': 'mobilenet_v2.conv_1x1.convolution',
  'head_norm': 'mobilenet_v2.conv_1x1.normalization',
  'fc': 'classifier',
}

# VGG16 and AlexNet. PyTorch counts their layers together with ReLUs and poolings.

_VGG = [f'{stage}_{i + 1}' for stage, (_, count) in enumerate(vgg.STAGES, 1) for i in range(count)]
_PLAIN = dict(zip(_VGG, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))
_NORMED = dict(zip(_VGG, (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), strict=True))
VGG16 = {f'conv{layer}': f'features.{i}' for layer, i in _PLAIN.items()}
VGG16_BN = {f'conv{layer}': f'features.{i} bias' for layer, i in _NORMED.items()} | {
  f'norm{layer}': f'features.{i + 1}' for layer, i in _NORMED.items()
}
VGG16_HEAD = {'fc6': 'classifier.0 matrix', 'fc7': 'classifier.3 matrix', 'fc8': 'classifier.6'}
VGG16_HEAD_TIMM = {'fc6': 'pre_logits.fc1', 'fc7': 'pre_logits.fc2 pixel', 'fc8': 'head.fc'}
ALEXNET = {
  'conv1': 'features.0',
  'conv2': 'features.3',
  'conv3': 'features.6',
  'conv4': 'features.8',
  'conv5': 'features.10',
}
ALEXNET_HEAD = {'fc6': 'classifier.1 matrix', 'fc7': 'classifier.4 matrix', 'fc8': 'classifier.6'}

XCEPTION65 = {
  'stem{}_conv': 'stem.{}.conv',
  'stem{}_norm': 'stem.{}.bn',
  'block{}/conv{}_depthwise': 'blocks.{}.stack.conv{}.conv_dw',
  'block{}/norm{}_depthwise': 'blocks.{}.stack.conv{}.bn_dw',
  'block{}/conv{}_pointwise': 'blocks.{}.stack.conv{}.conv_pw',
  'block{}/norm{}_pointwise': 'blocks.{}.stack.conv{}.bn_pw',
  'block{}/shortcut_conv': 'blocks.{}.shortcut.conv',
  'block{}/shortcut_norm': 'blocks.{}.shortcut.bn',
}

# HRNet. timm's names are its authors'.

HRNET = {
  'conv{}': 'conv{}',
  'norm{}': 'bn{}',
  **under(UNIT, 'layer1_{}/', 'layer1.{}.'),
  'transition{}_{}_conv': 'transition{}.{}.0',
  'transition{}_{}_norm': 'transition{}.{}.1',
  'transition{}_{}_{}_conv': 'transition{}.{}.{}.0',
  'transition{}_{}_{}_norm': 'transition{}.{}.{}.1',
  **under(UNIT, 'stage{}_{}/branch{}_{}/', 'stage{}.{}.branches.{}.{}.'),
  'stage{}_{}/fuse{}_{}_conv': 'stage{}.{}.fuse_layers.{}.{}.0',
  'stage{}_{}/fuse{}_{}_norm': 'stage{}.{}.fuse_layers.{}.{}.1',
  'stage{}_{}/fuse{}_{}_{}_conv': 'stage{}.{}.fuse_layers.{}.{}.{}.0',
  'stage{}_{}/fuse{}_{}_{}_norm': 'stage{}.{}.fuse_layers.{}.{}.{}.1',
}
HRNET_HEAD = {
  **under(UNIT, 'incre{}_{}/', 'incre_modules.{}.{}.'),
  'downsamp{}_conv': 'downsamp_modules.{}.0',
  'downsamp{}_norm': 'downsamp_modules.{}.1',
  'final_conv': 'final_layer.0',
  'final_norm': 'final_layer.1',
  'classifier': 'classifier',
}

# The heads of torchvision's segmentation models.

AUXILIARY = {
  'aux/conv': 'aux_classifier.0',
  'aux/norm': 'aux_classifier.1',
  'aux/score': 'aux_classifier.4',
}
FCN_RESNET = AUXILIARY | {
  'head/conv': 'classifier.0',
  'head/norm': 'classifier.1',
  'head/score': 'classifier.4',
}
DEEPLAB_V3 = AUXILIARY | {
  **{f'aspp/branch{i}_conv': f'classifier.0.convs.{i}.0' for i in range(4)},
  **{f'aspp/branch{i}_norm': f'classifier.0.convs.{i}.1' for i in range(4)},
  'aspp/pool_conv': 'classifier.0.convs.4.1',
  'aspp/pool_norm': 'classifier.0.convs.4.2',
  'aspp/project_conv': 'classifier.0.project.0',
  'aspp/project_norm': 'classifier.0.project.1',
  'head/conv': 'classifier.1',
  'head/norm': 'classifier.2',
  'head/score': 'classifier.4',
}

# torchvision's Mask R-CNN, and what its layers were called when the first's weights were saved.

PYRAMID = {
  'fpn/inner{}_conv': 'backbone.fpn.inner_blocks.{}.0',
  'fpn/inner{}_norm': 'backbone.fpn.inner_blocks.{}.1',
  'fpn/layer{}_conv': 'backbone.fpn.layer_blocks.{}.0',
  'fpn/layer{}_norm': 'backbone.fpn.layer_blocks.{}.1',
}
MASK_RCNN = PYRAMID | {
  'proposal_conv0': 'rpn.head.conv.0.0',
  'proposal_conv1': 'rpn.head.conv.1.0',
  'proposal_scores': 'rpn.head.cls_logits',
  'proposal_deltas': 'rpn.head.bbox_pred',
  'box_head/fc6': 'roi_heads.box_head.fc6 matrix',
  'box_head/fc7': 'roi_heads.box_head.fc7',
  'box_head/scores': 'roi_heads.box_predictor.cls_score',
  'box_head/deltas': 'roi_heads.box_predictor.bbox_pred',
  'mask_head/conv{}': 'roi_heads.mask_head.{}.0',
  'mask_head/norm{}': 'roi_heads.mask_head.{}.1',
  'mask_head/upconv': 'roi_heads.mask_predictor.conv5_mask transposed',
  'mask_head/scores': 'roi_heads.mask_predictor.mask_fcn_logits',
}
MASK_RCNN_V2 = MASK_RCNN | {
  'box_head/conv{}': 'roi_heads.box_head.{}.0',
  'box_head/norm{}': 'roi_heads.box_head.{}.1',
  'box_head/fc6': 'roi_heads.box_head.5 matrix',
}
MASK_RCNN_SAVED = MASK_RCNN | {
  'fpn/inner{}_conv': 'backbone.fpn.inner_blocks.{}',
  'fpn/layer{}_conv': 'backbone.fpn.layer_blocks.{}',
  'proposal_conv0': 'rpn.head.conv',
  'mask_head/conv{}': 'roi_heads.mask_head.mask_fcn{+1}',
}


class Table(NamedTuple):
  """How somebody names the layers of a net."""

  whose: str
  backbone: Names
  head: Names  # all other layers
  inside: str = ''  # stands before their backbone's names where they have a head
  extra_variance: float = 0.0  # the epsilon of their batch norms, less that of ours

  @property
  def names(self) -> Names:
    return {**self.backbone, **self.head}


BACKBONES = {  # by the beginning of a backbone's name
  'resnet': (
    Table('torchvision', RESNET, {'fc': 'fc'}),  # and timm
    Table('Hugging Face', RESNET_HUGGING_FACE, {'fc': 'classifier.1'}, 'resnet.'),
  ),
  'preactivation': (Table('timm', RESNET_V2, {}),),
  'mobilenet_v2': (
    Table('torchvision', MOBILENET_V2, MOBILENET_V2_HEAD),
    Table('timm', MOBILENET_V2_TIMM, MOBILENET_V2_HEAD_TIMM),
    Table(
      'Hugging Face',
      MOBILENET_V2_HUGGING_FACE,
      MOBILENET_V2_HEAD_HUGGING_FACE,
      'mobilenet_v2.',
      1e-3 - 1e-5,
    ),
  ),
  'vgg16': (
    Table('torchvision', VGG16_BN, VGG16_HEAD),
    Table('torchvision', VGG16, VGG16_HEAD),
    Table('timm', VGG16_BN, VGG16_HEAD_TIMM),
    Table('timm', VGG16, VGG16_HEAD_TIMM),
  ),
  'alexnet': (Table('torchvision', ALEXNET, ALEXNET_HEAD),),
  'xception65': (Table('timm', XCEPTION65, {'fc': 'head.fc'}),),
  'hrnet_w': (Table('timm', HRNET, HRNET_HEAD),),
}
_ON_RESNET = Table('torchvision', under(RESNET, 'backbone/', 'backbone.'), {})
_UNDER_PYRAMID = _ON_RESNET._replace(backbone=under(RESNET, 'backbone/', 'backbone.body.'))
SYSTEMS = {  # on ResNets
  'fcn_resnet': (_ON_RESNET._replace(head=FCN_RESNET),),
  'deeplab_v3': (_ON_RESNET._replace(head=DEEPLAB_V3),),
  'mask_rcnn': (
    _UNDER_PYRAMID._replace(head=MASK_RCNN),
    _UNDER_PYRAMID._replace(head=MASK_RCNN_V2),
    # The norms of the weights that are published have no epsilon.
    _UNDER_PYRAMID._replace(head=MASK_RCNN_SAVED, extra_variance=-1e-5),
  ),
}
SYSTEMS['panoptic_fpn'] = SYSTEMS['mask_rcnn']  # but for its branch of stuff
VGG16_ITSELF = ('fcn', 'deconvnet', 'segnet')  # VGG16's layers lie among theirs
WITH_HEAD = ('classifier', 'fcn', 'deconvnet')  # these have layers of the classifier's head, too


def tables(model: Mapping) -> list[Table]:
  """The tables that a file may follow whose weights fit the system of `config.model`.

  Whole models like the system come first, then classifiers, with what others put before the names
  of a backbone.
  """
  model = model.get('system', model)  # what stands behind another
  name, found = model['name'], []
  backbone = model.get('backbone', getattr(MODELS.get(name), 'backbone', ''))
  if name in SYSTEMS and backbone.startswith('resnet'):
    found.extend(SYSTEMS[name])
    if model.get('box_convs'):  # as the second Mask R-CNN
      found.sort(key=lambda table: table.head is not MASK_RCNN_V2)
  if name in VGG16_ITSELF:
    backbone = 'vgg16' if backbone in ('', 'vgg16') else ''
  if model.get('preactivation'):
    backbone = 'preactivation'
  ours = '' if name in VGG16_ITSELF else 'backbone/'
  kinds = [kind for kind in BACKBONES if backbone.startswith(kind)]
  for table in BACKBONES[kinds[0]] if kinds else ():
    head = table.head if name in WITH_HEAD else {}
    for theirs in dict.fromkeys((table.inside, '', 'backbone.', 'encoder.')):
      found.append(table._replace(backbone=under(table.backbone, ours, theirs), head=head))
  return found


def whole(model: Mapping) -> Table:
  """The table of the model of torchvision's that the system of `config.model` is.

  Raises:
    UserError: it is none.
  """
  known = tables(model)
  if not known or known[0] not in SYSTEMS.get(model['name'], ()):
    raise errors.UserError(
      f'model.name is {model["name"]!r}, which torchvision has not; expected one of '
      f'{", ".join(SYSTEMS)}, on a ResNet'
    )
  if (norm := model.get('norm', 'batch')) not in ('batch', 'frozen_batch'):
    raise errors.UserError(f"model.norm is {norm!r}; expected 'batch', which torchvision's has")
  return known[0]


def translate(names: Names, layer: str) -> str | None:
  """What `layer` is called there, and what stands behind its name; None if it is not there."""
  for ours, theirs in names.items():
    if match := _pattern(ours).fullmatch(layer):
      return theirs and _filled(theirs, ours, match.groups())
  return None


def backwards(names: Names) -> Names:
  """The same lines, from their layers to ours."""
  return {theirs.partition(' ')[0]: ours for ours, theirs in names.items() if theirs}


_NUMBER = re.compile(r'\{([+-]\d+)?\}')


@functools.cache
def _pattern(template: str) -> re.Pattern:
  parts = (re.escape(part).replace(r'\*', '.*') for part in _NUMBER.sub('\0', template).split('\0'))
  return re.compile(r'(\d+)'.join(parts))


def _filled(template: str, source: str, numbers: tuple[str, ...]) -> str:
  """`template` with the numbers that were found in `source`."""
  shifts = (int(shift or 0) for shift in _NUMBER.findall(source))
  plain = (int(number) - shift for number, shift in zip(numbers, shifts, strict=True))
  return _NUMBER.sub(lambda match: str(next(plain) + int(match[1] or 0)), template)
