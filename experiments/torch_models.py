"""PyTorch's counterparts of systems of the suite, to compare with: the same layers, layer by layer.

DeepLab v3 and FCN on ResNet-50 are torchvision's. Of the others there is none to take; these are
written as a user of PyTorch would, and their layers have the names that ours have. All give a list
of float32 logits [N, num_classes, H, W] at the input's size, in training the auxiliary head's, too.
"""

import functools
import sys

import torch
from torch import nn
from torch.nn import functional

VGG16 = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels / width, convolutions) of each stage
_KEPT = []  # libraries of operators last as long as their objects


class Layered(nn.Module):
  """Layers by name, of which a convolution without bias has a batch norm and, mostly, a ReLU."""

  def add(self, name: str, channels: int, features: int, size: int = 3) -> int:
    """A convolution and its norm; returns what goes out."""
    self.add_module(name, nn.Conv2d(channels, features, size, padding=size // 2, bias=False))
    self.add_module(_norm(name), nn.BatchNorm2d(features))
    return features

  def layer(self, name: str, x: torch.Tensor, relu: bool = True) -> torch.Tensor:
    x = self.get_submodule(_norm(name))(self.get_submodule(name)(x))
    return functional.relu(x, inplace=True) if relu else x


def _norm(name: str) -> str:
  return name.replace('conv', 'norm') if 'conv' in name else f'{name}_norm'


def _pad_behind(x: torch.Tensor, multiple: int) -> torch.Tensor:
  height, width = x.shape[2:]
  margins = (0, -width % multiple, 0, -height % multiple)
  return functional.pad(x, margins, 'replicate') if any(margins) else x


class UNet(Layered):
  """Ours with same padding, batch norm and transposed convolutions."""

  def __init__(self, num_classes: int, width: int, depth: int):
    super().__init__()
    self.depth, channels = depth, 3
    for level in range(depth):
      channels = self._add_two(f'down{level}', channels, width * 2**level)
    channels = self._add_two('bottom', channels, width * 2**depth)
    for level in reversed(range(depth)):
      features = width * 2**level
      self.add_module(f'up{level}_upconv', nn.ConvTranspose2d(channels, features, 2, 2))
      channels = self._add_two(f'up{level}', 2 * features, features)
    self.head = nn.Conv2d(channels, num_classes, 1)

  def _add_two(self, name, channels, features):
    return self.add(f'{name}_conv2', self.add(f'{name}_conv1', channels, features), features)

  def _two(self, name, x):
    return self.layer(f'{name}_conv2', self.layer(f'{name}_conv1', x))

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    height, width = images.shape[2:]
    x, skips = _pad_behind(images, 2**self.depth), []
    for level in range(self.depth):
      x = self._two(f'down{level}', x)
      skips.append(x)
      x = functional.max_pool2d(x, 2)
    x = self._two('bottom', x)
    for level in reversed(range(self.depth)):
      x = self.get_submodule(f'up{level}_upconv')(x)
      x = self._two(f'up{level}', torch.cat([skips[level], x], 1))
    return [self.head(x)[:, :, :height, :width].float()]


class SegNet(Layered):
  """Ours with batch norm and max_unpool."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    channels = 3
    for number, (times, count) in enumerate(VGG16, start=1):
      for i in range(1, count + 1):
        channels = self.add(f'conv{number}_{i}', channels, times * width)
    for number in (5, 4, 3, 2, 1):
      times, count = VGG16[number - 1]
      for i in range(count, 1, -1):
        channels = self.add(f'conv{number}_{i}d', channels, times * width)
      if number > 1:
        channels = self.add(f'conv{number}_1d', channels, VGG16[number - 2][0] * width)
    self.conv1_1d = nn.Conv2d(channels, num_classes, 3, padding=1)

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    height, width = images.shape[2:]
    x, positions = _pad_behind(images, 32), []
    for number, (_, count) in enumerate(VGG16, start=1):
      for i in range(1, count + 1):
        x = self.layer(f'conv{number}_{i}', x)
      x, position = functional.max_pool2d(x, 2, return_indices=True)
      positions.append(position)
    for number in (5, 4, 3, 2, 1):
      x = functional.max_unpool2d(x, positions.pop(), 2)
      for i in range(VGG16[number - 1][1], 1 if number == 1 else 0, -1):
        x = self.layer(f'conv{number}_{i}d', x)
    return [self.conv1_1d(x)[:, :, :height, :width].float()]


class SegNetBasic(Layered):
  """Ours with batch norm and max_unpool."""

  def __init__(self, num_classes: int, width: int):
    super().__init__()
    channels = 3
    for number in (1, 2, 3, 4):
      channels = self.add(f'conv{number}', channels, width, 7)
      self.add(f'conv{number}d', width, width, 7)
    self.classifier = nn.Conv2d(width, num_classes, 1)

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    height, width = images.shape[2:]
    x, positions = _pad_behind(images, 16), []
    for number in (1, 2, 3, 4):
      x = self.layer(f'conv{number}', x)
      x, position = functional.max_pool2d(x, 2, return_indices=True)
      positions.append(position)
    for number in (4, 3, 2, 1):
      x = functional.max_unpool2d(x, positions.pop(), 2)
      x = self.layer(f'conv{number}d', x, relu=False)
    return [self.classifier(x)[:, :, :height, :width].float()]


class FCN8s(Layered):
  """Ours on VGG16 with batch norm."""

  def __init__(self, num_classes: int, width: int, fc_features: int, dropout: float):
    super().__init__()
    channels = 3
    for number, (times, count) in enumerate(VGG16, start=1):
      for i in range(1, count + 1):
        channels = self.add(f'conv{number}_{i}', channels, times * width)
    self.add('fc6', channels, fc_features, 7)
    self.add('fc7', fc_features, fc_features, 1)
    self.dropout = nn.Dropout(dropout)
    self.score_fr = nn.Conv2d(fc_features, num_classes, 1)
    self.score_pool4 = nn.Conv2d(VGG16[3][0] * width, num_classes, 1)
    self.score_pool3 = nn.Conv2d(VGG16[2][0] * width, num_classes, 1)
    # Behind a border of one repeated score, of which nothing is left: 4x4 with stride 2.
    up = functools.partial(nn.ConvTranspose2d, num_classes, num_classes, 4, 2, 3, bias=False)
    self.upscore2, self.upscore_pool4 = up(), up()

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    height, width = images.shape[2:]
    x = images = _pad_behind(images, 32)
    pools = {}
    for number, (_, count) in enumerate(VGG16, start=1):
      for i in range(1, count + 1):
        x = self.layer(f'conv{number}_{i}', x)
      x = pools[number] = functional.max_pool2d(x, 2)
    for name in ('fc6', 'fc7'):
      x = self.dropout(self.layer(name, x))
    x = self.upscore2(functional.pad(self.score_fr(x), (1, 1, 1, 1), 'replicate'))
    x = x + self.score_pool4(pools[4])
    x = self.upscore_pool4(functional.pad(x, (1, 1, 1, 1), 'replicate'))
    x = x + self.score_pool3(pools[3])
    return [_enlarged(x, images.shape[2:])[:, :, :height, :width]]


class TorchVision(nn.Module):
  """A segmentation model of torchvision's; without its auxiliary head where nothing is trained."""

  def __init__(self, name: str, num_classes: int):
    super().__init__()
    fields = {'weights': None, 'weights_backbone': None, 'aux_loss': True}
    self.net = torchvision().models.get_model(name, num_classes=num_classes, **fields)

  def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
    features = self.net.backbone(images)
    scores = [self.net.classifier(features['out'])]
    if self.training:
      scores.append(self.net.aux_classifier(features['aux']))
    return [_enlarged(x, images.shape[2:]) for x in scores]


def _enlarged(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
  return functional.interpolate(scores.float(), size, mode='bilinear', align_corners=False)


@functools.cache
def torchvision():
  """torchvision, whose models need none of its compiled operators, even if it has none."""
  try:
    import torchvision
  except RuntimeError:  # they were compiled for another PyTorch
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
      del sys.modules[name]
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _KEPT.append(library)
    import torchvision
  return torchvision


# By the name of the config: the net for its `config.model` and a number of classes.
NETS = {
  'unet': lambda model, classes: UNet(classes, model['width'], model['depth']),
  'segnet': lambda model, classes: SegNet(classes, model['width']),
  'segnet_basic': lambda model, classes: SegNetBasic(classes, model['width']),
  'fcn8s': lambda model, classes: FCN8s(
    classes, model['width'], model['fc_features'], model['dropout']
  ),
  'fcn_resnet': lambda model, classes: TorchVision('fcn_resnet50', classes),
  'deeplab_v3': lambda model, classes: TorchVision('deeplabv3_resnet50', classes),
}
