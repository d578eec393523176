"""SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation.

Badrinarayanan, Kendall and Cipolla 2015, PAMI 2017. The encoder is VGG16 without its fully
connected layers; each pooling remembers where in its window the maximum stood. The decoder is the
encoder's mirror image: it puts each value back to that place, with zeros around it, and learns
convolutions that make the sparse maps dense (figures 2 and 3). Two bits for each pooled value are
all that the encoder hands over, where U-Net hands over its maps.

SegNet-Basic (section 3.1) is the small one on which the paper compares decoders. The decoder's
upsampling can be changed in both, to compare as the paper does: 'max_unpool' is the paper's,
'nearest', 'bed_of_nails' and 'bilinear' know nothing of the encoder and have no parameters, and
'transposed' learns a 2x2 transposed convolution of stride 2 from each map to as many channels
(with width 64 2.4 M parameters more in SegNet, 66 k in SegNet-Basic).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import vgg
from seg_jax.models.layers import Conv, conv_before_norm
from seg_jax.models.norms import make_norm
from seg_jax.models.padding import pad_behind
from seg_jax.models.unet import UpConv
from seg_jax.ops.pooling import max_pool_with_argmax
from seg_jax.ops.resizing import resize_bilinear
from seg_jax.ops.unpooling import max_unpool, unpool_bed_of_nails, unpool_nearest

UPSAMPLINGS = ('max_unpool', 'nearest', 'bed_of_nails', 'bilinear', 'transposed')


class SegNet(nn.Module):
  """Logits for pictures of any height and width.

  The paper's: width 64, batch norm, max_unpool; 29.4 M parameters, half of them in the decoder.
  """

  num_classes: int
  width: int = 64  # channels at full resolution; 8 times as many in the two lowest stages
  norm: str = 'batch'
  upsampling: str = 'max_unpool'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32; padding and cropping happen inside."""
    height, width = images.shape[1:3]
    conv, norm, upsample = _layers(self, train)
    x = pad_behind(images, 32).astype(self.dtype)
    positions = []
    for number in (1, 2, 3, 4, 5):
      x, position = max_pool_with_argmax(vgg.stage(x, number, self.width, conv, norm))
      positions.append(position)
    for number in (5, 4, 3, 2):
      x = upsample(x, positions.pop(), name=f'up{number}')
      x = vgg.mirrored_stage(x, number, self.width, conv, norm)
    x = upsample(x, positions.pop(), name='up1')
    x = nn.relu(norm(name='norm1_2d')(conv(self.width, (3, 3), name='conv1_2d')(x)))
    logits = Conv(self.num_classes, (3, 3), dtype=self.dtype, name='conv1_1d')(x)
    return {'logits': logits[:, :height, :width].astype(jnp.float32)}


class SegNetBasic(nn.Module):
  """Logits for pictures of any height and width.

  Four 7x7 convolutions down and four up, all of `width` channels with norm and without bias, ReLU
  in the encoder only, then a 1x1 classifier: 1.4 M parameters with the paper's width of 64. A value
  of the lowest map sees 106 x 106 pixels. The authors' local response normalisation of the picture,
  which their later SegNet dropped, is left out: pictures come normalised.
  """

  num_classes: int
  width: int = 64
  norm: str = 'batch'
  upsampling: str = 'max_unpool'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32; padding and cropping happen inside."""
    height, width = images.shape[1:3]
    conv, norm, upsample = _layers(self, train)
    x = pad_behind(images, 16).astype(self.dtype)
    positions = []
    for number in (1, 2, 3, 4):
      x = norm(name=f'norm{number}')(conv(self.width, (7, 7), name=f'conv{number}')(x))
      x, position = max_pool_with_argmax(nn.relu(x))
      positions.append(position)
    for number in (4, 3, 2, 1):
      x = upsample(x, positions.pop(), name=f'up{number}')
      x = norm(name=f'norm{number}d')(conv(self.width, (7, 7), name=f'conv{number}d')(x))
    logits = Conv(self.num_classes, (1, 1), dtype=self.dtype, name='classifier')(x)
    return {'logits': logits[:, :height, :width].astype(jnp.float32)}


def _layers(model: SegNet | SegNetBasic, train: bool) -> tuple[Callable, Callable, Callable]:
  """Constructors of convolutions and norms, and the decoder's upsampling."""
  if model.upsampling not in UPSAMPLINGS:
    hint = errors.nearest(model.upsampling, UPSAMPLINGS)
    raise errors.UserError(f'model.upsampling is {model.upsampling!r}{hint}')
  conv = conv_before_norm(model.norm, model.dtype)
  norm = make_norm(model.norm, train, model.dtype)
  return conv, norm, functools.partial(_upsample, model.upsampling)


def _upsample(kind: str, x: jax.Array, positions: jax.Array, name: str) -> jax.Array:
  """`x` [N, h, w, C] at twice its size; `positions` are those of the pooling that it undoes."""
  size = (2 * x.shape[1], 2 * x.shape[2])
  match kind:
    case 'max_unpool':
      return max_unpool(x, positions, size)
    case 'nearest':
      return unpool_nearest(x)
    case 'bed_of_nails':
      return unpool_bed_of_nails(x)
    case 'bilinear':
      return resize_bilinear(x, size)
    case 'transposed':
      return UpConv(x.shape[-1], dtype=x.dtype, name=name)(x)
