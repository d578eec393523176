"""HRNet: Deep High-Resolution Representation Learning for Visual Recognition.

Wang, Sun et al. 2019 and PAMI 2020, section 3, https://arxiv.org/abs/1908.07919. A branch of stride
4 is kept from beginning to end, and each of stages 2 to 4 opens one of half the size and twice the
channels beside the others (3.1). A stage is a chain of blocks, each of which computes residual
units in every branch and then exchanges: every branch becomes the sum of all, brought to its size
(3.2, figure 3). The widths 18, 32 and 48 are those of the finest branch (3.4). Names are numbered
as the authors' and timm's.

An exchange repeats the pixels of coarser branches, as the authors' classifiers do, whose weights
are what training starts from, and timm; the paper's text and the authors' segmentation code
interpolate bilinearly. Where a size is no multiple of 32, a coarser branch covers more than a finer
one and what is too much is cut off, so that each pixel lies where the strided convolutions saw it.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones.resnet import Basic, Bottleneck
from seg_jax.models.layers import make_conv
from seg_jax.models.norms import make_norm
from seg_jax.ops.unpooling import unpool_nearest


class HighResolutionNet(nn.Module):
  """Features of pictures of any size, by their stride: the branches of the last stage."""

  width: int = 18  # channels of the finest branch, doubled in each coarser one
  modules: tuple[int, int, int] = (1, 4, 3)  # blocks of stages 2, 3 and 4
  units: int = 4  # residual units of each branch in a block, and of stage 1
  output_stride: int = 32  # no other
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[int, Float[Array, 'N h w D']]:
    """`{4, 8, 16, 32: the branches}`, of `width` times 1, 2, 4 and 8 channels, ceil(H / key) rows.

    Raises:
      UserError: `modules` or `units` of which there are none, or another `output_stride`.
    """
    self._check()
    conv = functools.partial(make_conv(self.dtype), bias=self.norm == 'none')
    norm = make_norm(self.norm, train, self.dtype)
    layer = functools.partial(_conv_norm, conv, norm)
    x = images.astype(self.dtype)
    for i in (1, 2):
      x = nn.relu(norm(name=f'norm{i}')(conv(64, 3, 2, name=f'conv{i}')(x)))
    unit = _unit(Bottleneck, conv, norm)
    for k in range(self.units):
      x = unit(64, name=f'layer1_{k}')(x)
    branches = [x]
    for stage, blocks in enumerate(self.modules, start=2):
      name = f'transition{stage - 1}'
      new = layer(branches[-1], self.width * 2 ** (stage - 1), 3, 2, name=f'{name}_{stage - 1}_0')
      if stage == 2:  # stage 1 has a bottleneck's channels
        branches = [nn.relu(layer(x, self.width, 3, 1, name=f'{name}_0'))]
      branches.append(nn.relu(new))
      for k in range(blocks):
        branches = MultiResolutionBlock(self.units, conv, norm, name=f'stage{stage}_{k}')(branches)
    return {2 ** (i + 2): x for i, x in enumerate(branches)}

  def _check(self):
    if self.output_stride != 32:
      raise errors.UserError(
        f'model.output_stride is {self.output_stride}; expected 32 with HRNet, which has a branch '
        'of stride 4 in any case and no strides to take away from the others'
      )
    if len(self.modules) != 3 or min(self.modules) < 1:
      raise errors.UserError(
        f'model.modules is {self.modules}; expected three numbers above 0, for stages 2, 3 and 4'
      )
    if self.units < 1:
      raise errors.UserError(f'model.units is {self.units}; expected a number above 0')


class MultiResolutionBlock(nn.Module):
  """Residual units in each branch, then an exchange between all of them (figure 3)."""

  units: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, branches: list[jax.Array]) -> list[jax.Array]:
    """[N, h, w, C] of each branch, the finest first; each next has ceil(h / 2) rows."""
    unit, parallel = _unit(Basic, self.conv, self.norm), []
    for i, x in enumerate(branches):
      for k in range(self.units):
        x = unit(x.shape[-1], name=f'branch{i}_{k}')(x)
      parallel.append(x)
    return [self._fused(parallel, i) for i in range(len(parallel))]

  def _fused(self, branches: list[jax.Array], i: int) -> jax.Array:
    """Branch `i` with all others added, the finer ones strided, the coarser ones repeated."""
    layer = functools.partial(_conv_norm, self.conv, self.norm)
    _, height, width, channels = branches[i].shape
    total = 0
    for j, x in enumerate(branches):
      for k in range(i - j):
        last = k == i - j - 1
        x = layer(x, channels if last else x.shape[-1], 3, 2, name=f'fuse{i}_{j}_{k}')
        x = x if last else nn.relu(x)
      if j > i:
        x = layer(x, channels, 1, 1, name=f'fuse{i}_{j}')
        x = unpool_nearest(x, 2 ** (j - i))[:, :height, :width]
      total += x
    return nn.relu(total)


class HRNetClassifier(nn.Module):
  """HRNet as the authors train it on ImageNet and timm has it; nothing here is segmented."""

  num_classes: int = 1000
  width: int = 18
  modules: tuple[int, int, int] = (1, 4, 3)
  units: int = 4
  norm: str = 'batch'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N num_classes']]:
    """`{'logits': [N, num_classes]}`, float32."""
    fields = {'modules': self.modules, 'units': self.units, 'norm': self.norm, 'dtype': self.dtype}
    features = HighResolutionNet(self.width, **fields, name='backbone')(images, train)
    norm = make_norm(self.norm, train, self.dtype)
    x = classified_features(features, make_conv(self.dtype), norm)
    return {'logits': nn.Dense(self.num_classes, name='classifier')(x)}


def classified_features(
  features: dict[int, Float[Array, 'N _ _ _']], conv: Callable, norm: Callable
) -> Float[Array, 'N 2048']:
  """What the classes are told by: the branches, widened by a bottleneck each, from fine to coarse.

  The finest is halved and added to the next, that to the next, and so on; the last is widened once
  more and averaged, in float32. These convolutions have biases besides their norms.
  """
  unit = _unit(Bottleneck, conv, norm)
  layer = functools.partial(_conv_norm, functools.partial(conv, bias=True), norm)
  y = None
  for i, x in enumerate(features.values()):
    x = unit(32 * 2**i, name=f'incre{i}_0')(x)
    if i:
      x += nn.relu(layer(y, x.shape[-1], 3, 2, name=f'downsamp{i - 1}'))
    y = x
  y = nn.relu(layer(y, 2048, 1, 1, name='final'))
  return y.astype(jnp.float32).mean((1, 2))


def _unit(kind: type[nn.Module], conv, norm) -> Callable[..., nn.Module]:
  """A constructor `unit(channels, name=...)` of ResNet's units without stride or dilation."""
  return functools.partial(kind, stride=1, rates=(1, 1), preactivation=False, conv=conv, norm=norm)


def _conv_norm(conv, norm, x, channels, size, stride, name) -> jax.Array:
  x = conv(channels, size, stride, name=f'{name}_conv')(x)
  return norm(name=f'{name}_norm')(x)
