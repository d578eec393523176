"""AlexNet: ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky et al.).

Five convolutions and three poolings that overlap, together of stride 32 (2012, section 3.5). The
local response normalisation, which has no parameters, is left out; `norm`, before each ReLU, is not
the paper's.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from seg_jax.ops.pooling import max_pool

# Channels (times width / 2), kernel, stride, groups and whether pooling follows, of each
# convolution. Two groups, which once ran on a GPU each, see half of the channels each.
LAYERS = (
  (3, 11, 4, 1, True),
  (8, 5, 1, 2, True),
  (12, 3, 1, 1, False),
  (12, 3, 1, 2, False),
  (8, 3, 1, 2, True),
)


def features(
  x: Float[Array, 'N H W C'],
  width: int,
  conv: Callable[..., nn.Module],
  norm: Callable[..., nn.Module],
) -> Float[Array, 'N H/32 W/32 D']:
  """All convolutions and poolings, up to pool5; H and W are multiples of 32.

  `width` is 64 in the paper, which then has 96 channels in conv1 and no norm, and is a multiple of
  4. `conv(features, size, name=...)` and `norm(name=...)` are constructors made once for a whole
  model; the layers are called conv1, norm1 and so on. Kernels and windows are padded to lie about
  their cells: a value's window of 195 x 195 pixels has its middle 13.5 pixels up and left of that
  of its 32 x 32 cell.
  """
  for number, (channels, size, stride, groups, pooled) in enumerate(LAYERS, start=1):
    layer = conv(
      channels * width // 2,
      (size, size),
      strides=stride,
      feature_group_count=groups,
      conv_general_dilated=_group_by_group,
      name=f'conv{number}',
    )
    x = nn.relu(norm(name=f'norm{number}')(layer(x)))
    if pooled:
      x = max_pool(x, 3, 2, padding=1)
  return x


def _group_by_group(x, kernel, *how, feature_group_count, **options):
  """`lax.conv_general_dilated`, whose weight gradient of grouped kernels is slow on a CPU (30x)."""
  groups = zip(*(jnp.split(a, feature_group_count, -1) for a in (x, kernel)), strict=True)
  parts = [lax.conv_general_dilated(a, b, *how, **options) for a, b in groups]
  return jnp.concatenate(parts, -1)
