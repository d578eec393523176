"""AlexNet: ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky et al.).

Five convolutions and three poolings that overlap, together of stride 32 (2012, section 3.5). The
local response normalisation, which has no parameters, is left out; `norm`, before each ReLU, is not
the paper's. `features` has the paper's two columns, of which half of the layers see only their own;
`AlexNet` has one, with fewer channels (One weird trick for parallelizing convolutional neural
networks, Krizhevsky 2014), as torchvision's.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.layers import Conv, make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_plan
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
# Channels (times width) and kernel of conv2 to conv5 in one column; pooling precedes each group.
ONE_COLUMN = (((2, 3, 5),), ((3, 6, 3), (4, 4, 3), (5, 4, 3)))
PADDINGS = {'symmetric': (5, 1), 'valid': (2, 0)}  # of conv1 and of the poolings


class AlexNet(nn.Module):
  """Features of pictures of any size, by the stride that they have in the classifier.

  `padding` 'symmetric' lays each window about its first pixel's cell, so that maps of all output
  strides lie over the picture alike. 'valid' is torchvision's, for the classifier: conv1 is padded
  by 2 and the poolings are not, so that each map lacks a row or two, 6 x 6 values for 224 x 224
  pixels. The weights are the same.
  """

  output_stride: int = 32  # of the last pooling
  width: int = 64  # channels of conv1
  padding: str = 'symmetric'
  norm: str = 'batch'  # 'none' is torchvision's, with biases
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[int, Float[Array, 'N h w D']]:
    """`{4: conv1, 8: pool1, 16: pool2, 32: pool5}`; no map has stride 2.

    Maps have ceil(H / s) rows, s the smaller of the key and `output_stride`, unless `padding` is
    'valid'.
    """
    if self.padding not in PADDINGS:
      raise errors.UserError(
        f'model.padding is {self.padding!r}{errors.nearest(self.padding, PADDINGS)}'
      )
    border, window_border = PADDINGS[self.padding]
    bias = self.norm == 'none'
    conv = functools.partial(make_conv(self.dtype), bias=bias)
    norm = make_norm(self.norm, train, self.dtype)
    (stride, _), *plan = atrous_plan([4, 2, 2, 2], self.output_stride)

    first = Conv(  # its border is in the way of `make_conv`
      self.width,
      (11, 11),
      strides=stride,
      padding=border,
      use_bias=bias,
      kernel_init=nn.initializers.he_normal(),
      dtype=self.dtype,
      name='conv1',
    )
    x = nn.relu(norm(name='norm1')(first(images.astype(self.dtype))))
    features = {4: x}
    for whole, group, (stride, rate) in zip((8, 16, 32), ((), *ONE_COLUMN), plan, strict=True):
      for number, times, size in group:
        x = conv(times * self.width, size, rate=rate, name=f'conv{number}')(x)
        x = nn.relu(norm(name=f'norm{number}')(x))
      x = features[whole] = max_pool(x, 3, stride, window_border * rate, rate)
    return features


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
      name=f'conv{number}',
    )
    x = nn.relu(norm(name=f'norm{number}')(layer(x)))
    if pooled:
      x = max_pool(x, 3, 2, padding=1)
  return x
