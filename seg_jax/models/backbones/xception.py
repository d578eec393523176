"""Aligned Xception with 65 layers (Chen et al. 2018, DeepLab v3+, section 3.2 and figure 4).

Xception (Chollet 2017), deeper, with separable convolutions that stride in place of all poolings,
and with a norm behind each depthwise convolution. Numbered as timm's `xception65`: blocks 0 to 2
are the entry flow, 3 to 18 the middle flow, 19 and 20 the exit flow.

A block strides in the last of its three separable convolutions, and beside it in the 1x1 of its
shortcut. Nothing of a block lies behind its stride, so where `output_stride` takes a stride away
all three keep the rate that the block before had, and the blocks that follow are dilated.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_plan

# Of each block: its three separable convolutions' channels, its stride, and what it is added to,
# as the authors call that: a 1x1 convolution of its input, its input, or nothing.
BLOCKS = (
  ((128, 128, 128), 2, 'conv'),
  ((256, 256, 256), 2, 'conv'),
  ((728, 728, 728), 2, 'conv'),
  *[((728, 728, 728), 1, 'sum')] * 16,
  ((728, 1024, 1024), 2, 'conv'),
  ((1536, 1536, 2048), 1, 'none'),
)


class Xception(nn.Module):
  """Features of pictures of any size, by the stride that they have in the classifier."""

  output_stride: int = 32  # of the last block
  width: float = 1.0  # times the paper's channels
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[int, Float[Array, 'N h w D']]:
    """`{2, 4, 8, 16: the second separable convolution of blocks 0, 1, 2, 19; 32: block 20}`.

    These are the last before a stride, after their norm and before a ReLU, of 128, 256, 728, 1024
    and, last, 2048 channels. Of them DeepLab v3+ takes that of block 1, at stride 4, as its
    low-level features (the authors' `entry_flow/block2/.../separable_conv2_pointwise`); timm's
    features are the same after the ReLU. Maps have ceil(H / s) rows, s the smaller of the key and
    `output_stride`.
    """
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype, epsilon=1e-3)
    (first, _), *plan = atrous_plan([2, *(whole for _, whole, _ in BLOCKS)], self.output_stride)

    x = images.astype(self.dtype)
    for number, channels, stride in ((0, 32, first), (1, 64, 1)):
      x = conv(self._scaled(channels), 3, stride, name=f'stem{number}_conv')(x)
      x = nn.relu(norm(name=f'stem{number}_norm')(x))
    features, reached = {}, 2
    for number, (block, (stride, rate)) in enumerate(zip(BLOCKS, plan, strict=True)):
      channels, whole, shortcut = block
      channels = tuple(map(self._scaled, channels))
      fields = (channels, stride, rate, shortcut, conv, norm)
      x, before_stride = Block(*fields, name=f'block{number}')(x)
      if whole > 1:
        features[reached] = before_stride
        reached *= whole
    features[reached] = x
    return features

  def _scaled(self, channels: int) -> int:
    return max(1, int(channels * self.width))


class Block(nn.Module):
  """Three separable convolutions beside a shortcut.

  Each begins with a ReLU. In the last block, which has no shortcut, ReLUs follow all convolutions,
  depthwise and pointwise, instead.
  """

  channels: tuple[int, int, int]
  stride: int  # of the third
  rate: int  # of all three
  shortcut: str  # 'conv', 'sum' or 'none'
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(
    self, x: Float[Array, 'N H W C']
  ) -> tuple[Float[Array, 'N h w D'], Float[Array, 'N H W E']]:
    """The block's output and that of its second separable convolution."""
    before, behind = nn.relu, lambda x: x
    if self.shortcut == 'none':
      before, behind = behind, before
    y, outputs = x, []
    for number, channels in enumerate(self.channels, start=1):
      stride, wide = self.stride if number == 3 else 1, y.shape[-1]
      depthwise = self.conv(wide, 3, stride, self.rate, wide, name=f'conv{number}_depthwise')
      y = behind(self.norm(name=f'norm{number}_depthwise')(depthwise(before(y))))
      pointwise = self.conv(channels, 1, name=f'conv{number}_pointwise')
      y = behind(self.norm(name=f'norm{number}_pointwise')(pointwise(y)))
      outputs.append(y)
    if self.shortcut == 'conv':
      x = self.conv(self.channels[-1], 1, self.stride, name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x)
    return (y if self.shortcut == 'none' else x + y), outputs[1]
