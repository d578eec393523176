"""ResNet: Deep Residual Learning for Image Recognition (He et al. 2015, table 1), and denser.

As torchvision's: a bottleneck's stride is in its 3x3 convolution. `preactivation` is the later form
(Identity Mappings in Deep Residual Networks, He et al. 2016, figure 1b), with norm and ReLU before
each convolution and nothing after a unit's sum.

`output_stride` takes the last strides away and dilates what follows; DeepLab v3 (Chen et al. 2017)
adds two things: units of a multi-grid (section 3.2.1), and stages 5 to 7, copies of stage 4 in
cascade ("going deeper", section 3.2). There each stage has three units and halves the map once
more, to a stride of 256 where nothing is dilated.

A stage's first unit strides; its authors' last does, into the next stage. Where that stride is
taken away, the first unit's 3x3 convolution keeps the rate of the stage before it, as torchvision's
does: at output stride 16 the multi-grid (1, 2, 4) gives stage 4 the rates 1, 4 and 8, not 2, 4, 8.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.atrous import atrous_units
from seg_jax.ops.pooling import max_pool

UNITS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


class ResNet(nn.Module):
  """Features of pictures of any size, by the stride that they have in the classifier."""

  depth: int = 50  # 18, 34, 50, 101 or 152
  output_stride: int = 32  # of the last stage
  width: int = 64  # channels of the stem
  multi_grid: tuple[int, ...] = (1,)  # factors of the rates of the units of stage 4 and later
  extra_stages: int = 0  # copies of stage 4 behind it
  preactivation: bool = False
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[int, Float[Array, 'N h w D']]:
    """`{2: stem, 4: stage 1, 8: stage 2, 16: stage 3, 32: stage 4, 64: stage 5, ...}`.

    Maps have ceil(H / s) rows, s the smaller of the key and `output_stride`.
    """
    if self.depth not in UNITS:
      raise errors.UserError(f'a ResNet of depth {self.depth}; expected one of {list(UNITS)}')
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    stages = UNITS[self.depth] + UNITS[self.depth][3:] * self.extra_stages
    strides = [2 if stage and not k else 1 for stage, n in enumerate(stages) for k in range(n)]
    plan = iter(atrous_units([2, 2, *strides], self.output_stride))

    stride, *_ = next(plan)
    x = conv(self.width, 7, stride, name='conv1')(images.astype(self.dtype))
    if not self.preactivation:
      x = nn.relu(norm(name='norm1')(x))
    features = {2: x}
    stride, *_ = next(plan)
    x = max_pool(x, 3, stride, padding=1)
    unit = Basic if self.depth < 50 else Bottleneck
    for stage, count in enumerate(stages, start=1):
      channels = self.width * 2 ** min(stage - 1, 3)
      for k in range(count):
        stride, *rates = next(plan)
        if stage >= 4:
          rates = [rate * self.multi_grid[k % len(self.multi_grid)] for rate in rates]
        unit_fields = (channels, stride, tuple(rates), self.preactivation)
        x = unit(*unit_fields, conv, norm, name=f'layer{stage}_{k}')(x)
      features[2 ** (stage + 1)] = x
    if self.preactivation:
      features = {
        stride: nn.relu(norm(name=f'norm_{stride}')(x)) if stride > 2 else x
        for stride, x in features.items()
      }
    return features


class _Unit(nn.Module):
  channels: int
  stride: int
  rates: tuple[int, int]  # of the convolution that strides, and behind it
  preactivation: bool
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  def _sum(self, x: jax.Array, layers) -> jax.Array:
    """The sum of the shortcut and of `layers`, each (channels, kernel size, stride, rate)."""
    shortcut, (out, *_) = x, layers[-1]
    if self.preactivation:
      x = nn.relu(self.norm(name='norm1')(x))
    strides = self.stride > 1 or self.rates[0] != self.rates[1]  # or would, in the classifier
    if strides or x.shape[-1] != out:
      shortcut = self.conv(out, 1, self.stride, name='shortcut_conv')(x)
      if not self.preactivation:
        shortcut = self.norm(name='shortcut_norm')(shortcut)
    for i, layer in enumerate(layers, start=1):
      x = self.conv(*layer, name=f'conv{i}')(x)
      if not self.preactivation:
        x = self.norm(name=f'norm{i}')(x)
        x = nn.relu(x) if i < len(layers) else nn.relu(x + shortcut)
      elif i < len(layers):
        x = nn.relu(self.norm(name=f'norm{i + 1}')(x))
      else:
        x += shortcut
    return x


class Basic(_Unit):
  """Two 3x3 convolutions beside the shortcut (He et al. 2015, figure 5, left)."""

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C']) -> Float[Array, 'N h w channels']:
    rate, behind = self.rates
    layers = ((self.channels, 3, self.stride, rate), (self.channels, 3, 1, behind))
    return self._sum(x, layers)


class Bottleneck(_Unit):
  """1x1, 3x3 and 1x1 convolutions beside the shortcut (figure 5, right); 4 times the channels."""

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C']) -> Float[Array, 'N h w 4*channels']:
    layers = (
      (self.channels, 1, 1, 1),
      (self.channels, 3, self.stride, self.rates[0]),
      (4 * self.channels, 1, 1, 1),
    )
    return self._sum(x, layers)
