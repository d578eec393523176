"""The normalisations that every system can be built with."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn

from seg_jax import errors
from seg_jax.ops import devices

NORMS = ('batch', 'frozen_batch', 'group', 'none')


def make_norm(
  kind: str, train: bool, dtype, epsilon: float = 1e-5
) -> Callable[..., nn.Module | Callable]:
  """A constructor `norm(name=...)` of the layer, made once for a whole model.

  'batch' (Ioffe and Szegedy 2015; running averages in `batch_stats`, momentum 0.9), 'frozen_batch'
  (the same, but training neither uses the batch's statistics nor moves the running ones; scale and
  bias are trained, as DeepLab's authors do), 'group' (Wu and He 2018; groups of at most 16
  channels) or 'none'. Statistics are float32 whatever the `dtype`, and the batch's are those of all
  devices.
  """
  if kind in ('batch', 'frozen_batch'):
    frozen = kind == 'frozen_batch' or not train
    return functools.partial(
      nn.BatchNorm,
      use_running_average=frozen,
      momentum=0.9,
      epsilon=epsilon,
      dtype=dtype,
      axis_name=None if frozen else devices.axis_name(),
    )
  if kind == 'group':
    return functools.partial(_group_norm, epsilon=epsilon, dtype=dtype)
  if kind == 'none':
    return lambda name=None: lambda x: x
  raise errors.UserError(f'model.norm is {kind!r}{errors.nearest(kind, NORMS)}')


def _group_norm(epsilon, dtype, name=None):
  """The groups follow from the channels, which only the call knows."""
  return lambda x: nn.GroupNorm(
    num_groups=None,
    group_size=math.gcd(16, x.shape[-1]),
    epsilon=epsilon,
    dtype=dtype,
    name=name,
  )(x)
