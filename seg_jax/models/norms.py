"""The normalisations that every system can be built with."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn

from seg_jax import errors

NORMS = ('batch', 'group', 'none')


def make_norm(kind: str, train: bool, dtype) -> Callable[..., nn.Module | Callable]:
  """A constructor `norm(name=...)` of the layer, made once for a whole model.

  'batch' (Ioffe and Szegedy 2015; running averages in `batch_stats`, momentum 0.9), 'group' (Wu and
  He 2018; groups of at most 16 channels) or 'none'. Statistics are float32 whatever the `dtype`.
  """
  if kind == 'batch':
    return functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype
    )
  if kind == 'group':
    return functools.partial(_group_norm, dtype=dtype)
  if kind == 'none':
    return lambda name=None: lambda x: x
  raise errors.UserError(f'model.norm is {kind!r}{errors.nearest(kind, NORMS)}')


def _group_norm(dtype, name=None):
  """The groups follow from the channels, which only the call knows."""
  return lambda x: nn.GroupNorm(
    num_groups=None, group_size=math.gcd(16, x.shape[-1]), dtype=dtype, name=name
  )(x)
