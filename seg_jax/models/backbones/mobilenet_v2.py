"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al. 2018, table 2).

As torchvision's, without the last 1x1 convolution to 1280 channels, which is the classifier's:
DeepLab's authors leave it out as well (section 6.3). A block's stride is in its depthwise
convolution, the only one that reads neighbours; it keeps the rate of the blocks before it.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_plan

# Expansion, channels, units and the first unit's stride: t, c, n and s of table 2.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)
PADDINGS = ('symmetric', 'same')


class MobileNetV2(nn.Module):
  """Features of pictures of any size, by the stride that they have in the classifier.

  `padding` belongs to the weights: 'symmetric' is torchvision's, 'same' TensorFlow's. The latter's
  strides read other rows of a map of even length than of an odd one, so features at a smaller
  `output_stride` contain those at 32 for sizes such as 225 and 513 alone, a multiple of 32 and one.
  """

  output_stride: int = 32  # of the last block
  width: float = 1.0  # times the paper's channels, rounded to multiples of 8
  padding: str = 'symmetric'
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[int, Float[Array, 'N h w D']]:
    """`{2, 4, 8, 16, 32: the last block at that stride}`, of 16, 24, 32, 96 and 320 channels.

    Maps have ceil(H / s) rows, s the smaller of the key and `output_stride`.
    """
    if self.padding not in PADDINGS:
      raise errors.UserError(
        f'model.padding is {self.padding!r}{errors.nearest(self.padding, PADDINGS)}'
      )
    conv = functools.partial(make_conv(self.dtype, self.padding), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    blocks = [(t, c, 1 if k else s) for t, c, n, s in STAGES for k in range(n)]
    (stride, _), *plan = atrous_plan([2, *(whole for *_, whole in blocks)], self.output_stride)

    x = conv(round_channels(32 * self.width), 3, stride, name='conv0')(images.astype(self.dtype))
    x = nn.relu6(norm(name='norm0')(x))
    features, reached = {}, 2
    for number, ((times, channels, whole), (stride, rate)) in enumerate(
      zip(blocks, plan, strict=True), start=1
    ):
      channels = round_channels(channels * self.width)
      # A block that strides in the classifier has no shortcut, even if it strides no more.
      residual = whole == 1 and x.shape[-1] == channels
      block = (channels, times * x.shape[-1], stride, rate, residual, conv, norm)
      x = InvertedResidual(*block, name=f'block{number}')(x)
      reached *= whole
      features[reached] = x
    return features


class InvertedResidual(nn.Module):
  """Expanded by a 1x1 convolution, filtered depthwise, projected linearly (figure 3b)."""

  channels: int
  expanded: int  # channels of the depthwise convolution; as many as come in: not expanded
  stride: int
  rate: int
  residual: bool
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C']) -> Float[Array, 'N h w channels']:
    shortcut, wide = x, self.expanded
    if wide != x.shape[-1]:
      x = self.conv(wide, 1, name='expand_conv')(x)
      x = nn.relu6(self.norm(name='expand_norm')(x))
    x = self.conv(wide, 3, self.stride, self.rate, wide, name='depthwise_conv')(x)
    x = nn.relu6(self.norm(name='depthwise_norm')(x))
    x = self.norm(name='project_norm')(self.conv(self.channels, 1, name='project_conv')(x))
    return x + shortcut if self.residual else x


def round_channels(channels: float) -> int:
  """The nearest multiple of 8, at least 8, that is not more than a tenth smaller."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded if rounded >= 0.9 * channels else rounded + 8
