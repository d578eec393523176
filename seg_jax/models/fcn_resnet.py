"""FCN on ResNet, as torchvision's `fcn_resnet50` and `fcn_resnet101`.

The idea is that of Fully Convolutional Networks (Long et al. 2015), the rest is what became of it:
à trous, at a stride of 8, the backbone gives features that need no skips, a head of two
convolutions scores them, and bilinear interpolation does the rest. In training a second head scores
the features of the stage before the last (PSPNet, Zhao et al. 2017, section 3.3, deep supervision).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.backbones import backbone_of
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.resizing import resize_bilinear


class FCNResNet(nn.Module):
  """Logits for pictures of any height and width; torchvision's is the default."""

  num_classes: int
  backbone: str = 'resnet50'
  backbone_width: float = 1.0  # times the backbone's channels
  output_stride: int = 8
  dropout: float = 0.1  # in both heads
  auxiliary: bool = True  # a head on the features of stride 16, for training
  frozen_backbone_norm: bool = False
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes'] | tuple]:
    """`{'logits': [N, H, W, num_classes]}`, float32, and `aux_logits`, a tuple of as many more."""
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    features = backbone_of(self)(images, train)
    heads = {'head': features[max(features)]}
    if self.auxiliary:
      heads['aux'] = features[16]
    logits = []
    for name, x in heads.items():
      head = FCNHead(self.num_classes, x.shape[-1] // 4, self.dropout, conv, norm, name=name)
      logits.append(resize_bilinear(head(x, train), images.shape[1:3]))
    return {'logits': logits[0], 'aux_logits': tuple(logits[1:])}


class FCNHead(nn.Module):
  """Scores, float32: a 3x3 convolution with norm, ReLU and dropout, and one of 1x1."""

  num_classes: int
  features: int  # between the two
  dropout: float
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Float[Array, 'N h w C'], train: bool) -> Float[Array, 'N h w num_classes']:
    x = nn.relu(self.norm(name='norm')(self.conv(self.features, 3, name='conv')(x)))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return self.conv(self.num_classes, 1, bias=True, name='score')(x).astype(jnp.float32)
