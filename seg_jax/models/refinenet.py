"""RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation.

Lin, Milan, Shen and Reid, CVPR 2017, section 3, https://arxiv.org/abs/1611.06612. A ResNet's four
stages are refined from coarse to fine: each RefineNet block takes a stage and what the block before
made of the coarser ones (figure 2c). In a block (figure 3) each path goes through residual conv
units, which have no batch norm; all paths are fused at the finest size by summation; chained
residual pooling sees far around; and units follow again. On the direct way through a block there is
one ReLU, that before the pooling, so that gradients reach every stage (3.3).

What the paper leaves open is as in the authors' code (github.com/guosheng/refinenet): all
convolutions are 3x3, and only the first of a unit has a bias; a stage's channels are reduced to 512
at stride 32 and 256 else, whatever the cascade; a unit's two on a path from a coarser block are
computed where that block ends, so that each output has three in a row; half of the values are
dropped, in training, of the stages at strides 16 and 32 and before the classifier. Their later code
convolves before it pools; here it pools first, as in the paper.

Without norm the size of the first weights matters: with the usual variance of 2 by fan-in, values
would grow tenfold and more in every block. The authors draw with a deviation of 0.01, which at 256
channels is a variance of 0.23 by fan-in; here it is 0.25 at any number of channels.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.models.backbones import backbone_of
from seg_jax.models.layers import Conv
from seg_jax.ops.pooling import max_pool
from seg_jax.ops.resizing import resize_bilinear

# The strides of the stages that each block takes: section 3.1, and the variants of section 4.
CASCADES = {
  4: ((32,), (16,), (8,), (4,)),
  2: ((32, 16), (8, 4)),
  1: ((32, 16, 8, 4),),
}


class RefineNet(nn.Module):
  """Logits for pictures of any height and width.

  The paper's: resnet101 (or 50, 152), width 256, dropout 0.5. Parts of a block can be left out, to
  see what each adds; without both a block is a sum of convolved paths.
  """

  num_classes: int
  backbone: str = 'resnet101'
  backbone_width: float = 1.0  # times the backbone's channels
  preactivation: bool = False  # ResNets': norm and ReLU before their convolutions
  output_stride: int = 32
  cascade: int = 4  # blocks: 4, 2, or a single one
  width: int = 256  # channels of all paths but that of stride 32, which has twice as many
  residual_units: bool = True
  chained_pooling: int = 2  # poolings in a chain; 0 leaves them out
  dropout: float = 0.5
  frozen_backbone_norm: bool = False
  norm: str = 'batch'  # of the backbone; the rest has none
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'N H W C'], train: bool = False
  ) -> dict[str, Float[Array, 'N H W num_classes']]:
    """`{'logits': [N, H, W, num_classes]}`, float32.

    Raises:
      UserError: an unknown cascade, poolings below 0, or what the backbone cannot have.
    """
    self._check()
    fields = {'preactivation': True} if self.preactivation else {}
    features = backbone_of(self, **fields)(images, train)
    conv = functools.partial(
      Conv,
      kernel_size=(3, 3),
      use_bias=False,
      kernel_init=nn.initializers.variance_scaling(0.25, 'fan_in', 'normal'),
      dtype=self.dtype,
    )
    drop = nn.Dropout(self.dropout, deterministic=not train)
    refined = None
    for number, strides in zip(range(self.cascade, 0, -1), CASCADES[self.cascade], strict=True):
      stages = {s: drop(features[s]) if s > 8 else features[s] for s in strides}
      parts = (self.width, self.residual_units, self.chained_pooling, conv)
      refined = RefineNetBlock(*parts, name=f'refine{number}')(stages, refined)
    logits = conv(self.num_classes, use_bias=True, name='classifier')(drop(refined))
    return {'logits': resize_bilinear(logits.astype(jnp.float32), images.shape[1:3])}

  def _check(self):
    if self.cascade not in CASCADES:
      raise errors.UserError(
        f'model.cascade is {self.cascade!r}; expected one of {", ".join(map(str, CASCADES))}'
      )
    if self.chained_pooling < 0:
      raise errors.UserError(
        f'model.chained_pooling is {self.chained_pooling}; expected 0 or more poolings'
      )


class RefineNetBlock(nn.Module):
  """Units in each path, fusion, chained residual pooling, units (figure 3a)."""

  width: int
  residual_units: bool
  chained_pooling: int
  conv: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, stages: dict[int, jax.Array], coarser: jax.Array | None) -> jax.Array:
    """[N, h, w, C] from the `stages` by their strides, and from the block before, if there is one.

    The coarsest stage comes first. h and w are those of the last, C the fewest of any path.
    """
    paths = {} if coarser is None else {'coarser': coarser}
    for stride, x in stages.items():
      x = self.conv(self.width * (2 if stride == 32 else 1), name=f'reduce{stride}')(x)
      paths[f'stage{stride}'] = self._units(x, 2, f'stage{stride}')
    x = chained_residual_pooling(fuse(paths, self.conv), self.chained_pooling, self.conv)
    return self._units(x, 3, 'output')

  def _units(self, x, count, name):
    for i in range(1, count + 1) if self.residual_units else ():
      x = residual_conv_unit(x, self.conv, f'{name}_unit{i}')
    return x


def residual_conv_unit(
  x: Float[Array, 'N H W C'], conv: Callable[..., Callable], name: str
) -> Float[Array, 'N H W C']:
  """A ResNet's unit without norm: ReLU, convolution, ReLU, convolution, added (figure 3b).

  Here and below, `conv(features, name=...)` is a constructor of convolutions.
  """
  y = conv(x.shape[-1], use_bias=True, name=f'{name}_conv1')(nn.relu(x))
  return x + conv(x.shape[-1], name=f'{name}_conv2')(nn.relu(y))


def fuse(
  paths: dict[str, Float[Array, 'N _ _ _']], conv: Callable[..., Callable]
) -> Float[Array, 'N h w C']:
  """Multi-resolution fusion: all paths at the last one's size, summed (figure 3c).

  Convolutions, which can also weigh the paths, bring them to the fewest channels of any; a single
  path stays as it is.
  """
  if len(paths) == 1:
    return next(iter(paths.values()))
  channels = min(x.shape[-1] for x in paths.values())
  *_, finest = paths.values()
  convolved = (conv(channels, name=f'{name}_fuse')(x) for name, x in paths.items())
  return sum(resize_bilinear(x, finest.shape[1:3]) for x in convolved)


def chained_residual_pooling(
  x: Float[Array, 'N H W C'], count: int, conv: Callable[..., Callable]
) -> Float[Array, 'N H W C']:
  """ReLU, then `count` times a 5x5 maximum and a convolution of the last one's, all summed (3d)."""
  if not count:
    return x
  x = total = nn.relu(x)
  for i in range(1, count + 1):
    x = conv(x.shape[-1], name=f'pool{i}_conv')(max_pool(x, 5, 1, padding=2))
    total += x
  return total
