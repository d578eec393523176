"""U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al. 2015).

A contracting path of 3x3 convolutions and 2x2 max pooling, an expanding path of 2x2
up-convolutions, and at each level a skip that hands the contracting path's features over (figure
1). The paper's convolutions are valid, 572 x 572 in and 388 x 388 out, and what a picture lacks at
its borders is mirrored (figure 2, the overlap-tile strategy); with same padding the size stays.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.layers import Conv, conv_before_norm
from seg_jax.models.norms import make_norm
from seg_jax.ops.pooling import max_pool
from seg_jax.ops.resizing import resize_bilinear, transposed_conv

CHOICES = {'padding': ('same', 'valid'), 'upsampling': ('transposed', 'bilinear')}


class UNet(nn.Module):
  """Logits for pictures of any height and width.

  The paper's is width 64, depth 4, valid, transposed, no norm, dropout where the path turns.
  """

  num_classes: int
  width: int = 64  # channels at full resolution, doubled at each of `depth` poolings
  depth: int = 4
  padding: str = 'same'
  upsampling: str = 'transposed'
  norm: str = 'batch'
  dropout: float = 0.0
  skips: bool = True  # False, for comparison: the expanding path knows what the bottom tells it
  dtype: jnp.dtype = jnp.float32

  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32; padding and cropping happen inside."""
    for field, known in CHOICES.items():
      if (value := getattr(self, field)) not in known:
        raise errors.UserError(f'model.{field} is {value!r}{errors.nearest(value, known)}')
    height, width = images.shape[1:3]
    (top, bottom), (left, right) = (self._margins(n) for n in (height, width))
    mode = 'reflect' if self.padding == 'valid' else 'edge'
    images = jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)), mode)
    return {'logits': self.tile(images, train)[:, :height, :width]}

  def _margins(self, length: int) -> tuple[int, int]:
    """Pixels to add before and after, so that `tile` covers `length` from its first output on."""
    if self.padding == 'same':
      return 0, -length % 2**self.depth
    # Both convolutions of a level lose 4 pixels, on the way down and up; the lowest has to be even.
    lowest = 0
    while (covered := _expand(lowest, self.depth)) < length:
      lowest += 1
    total = _contract_inverse(lowest, self.depth)
    border = (total - covered) // 2
    return border, total - border - length

  @nn.compact
  def tile(self, images: Float[Array, 'N H W C'], train: bool) -> Float[Array, 'N h w num_classes']:
    """The network proper: with valid convolutions the output is smaller, 572 -> 388 at depth 4."""
    conv = conv_before_norm(self.norm, self.dtype, padding=self.padding.upper())
    norm = make_norm(self.norm, train, self.dtype)
    *skips, x = contracting_path(images.astype(self.dtype), self.width, self.depth, conv, norm)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for level in reversed(range(self.depth)):
      features = self.width * 2**level
      x = self._upsample(x, features, f'up{level}')
      if self.skips:
        x = jnp.concatenate([_centre_crop(skips[level], x.shape[1:3]), x], -1)
      x = double_conv(x, features, f'up{level}', conv, norm)
    return Conv(self.num_classes, (1, 1), dtype=self.dtype, name='head')(x).astype(jnp.float32)

  def _upsample(self, x, features, name):
    """The paper's up-convolution: twice the size, half the channels."""
    if self.upsampling == 'transposed':
      return UpConv(features, dtype=self.dtype, name=f'{name}_upconv')(x)
    x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
    return Conv(features, (1, 1), dtype=self.dtype, name=f'{name}_upconv')(x)


def contracting_path(
  x: Float[Array, 'N H W C'], width: int, depth: int, conv: Callable, norm: Callable
) -> list[Float[Array, 'N _ _ _']]:
  """What each level hands over, full resolution first, and the bottom behind them.

  Here and below, `conv(features, size, name=...)` and `norm(name=...)` are constructors of layers.
  """
  levels = []
  for level in range(depth):
    levels.append(double_conv(x, width * 2**level, f'down{level}', conv, norm))
    x = max_pool(levels[-1], 2)
  return [*levels, double_conv(x, width * 2**depth, 'bottom', conv, norm)]


def double_conv(
  x: Float[Array, 'N H W C'], features: int, name: str, conv: Callable, norm: Callable
) -> Float[Array, 'N h w features']:
  """Two 3x3 convolutions, each with norm and ReLU."""
  for i in (1, 2):
    x = conv(features, (3, 3), name=f'{name}_conv{i}')(x)
    x = nn.relu(norm(name=f'{name}_norm{i}')(x))
  return x


class UpConv(nn.Module):
  """A 2x2 transposed convolution of stride 2 with bias."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C']) -> Float[Array, 'N 2H 2W features']:
    shape = (2, 2, x.shape[-1], self.features)
    # Each output sees one input pixel, so the fan-in is the number of channels alone.
    init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal', in_axis=-2, batch_axis=(0, 1))
    kernel = self.param('kernel', init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    y = transposed_conv(x, kernel.astype(self.dtype))
    return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


def _expand(lowest: int, depth: int) -> int:
  """The output's length when the lowest map, after its convolutions, is `lowest` long."""
  for _ in range(depth):
    lowest = 2 * lowest - 4
  return lowest


def _contract_inverse(lowest: int, depth: int) -> int:
  """The input's length that gives a lowest map of `lowest` after its two valid convolutions."""
  length = lowest + 4
  for _ in range(depth):
    length = 2 * length + 4
  return length


def _centre_crop(x, size):
  top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
  return x[:, top : top + size[0], left : left + size[1]]
