"""The normalisations that every system can be built with."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from seg_jax import errors
from seg_jax.ops import channels, devices

NORMS = ('batch', 'frozen_batch', 'group', 'none')
MOMENTUM = 0.9  # of the running averages


def make_norm(
  kind: str, train: bool, dtype, epsilon: float = 1e-5
) -> Callable[..., nn.Module | Callable]:
  """A constructor `norm(name=...)` of the layer, made once for a whole model.

  'batch' (Ioffe and Szegedy 2015; running averages in `batch_stats`), 'frozen_batch' (the same, but
  training neither uses the batch's statistics nor moves the running ones; scale and bias are
  trained, as DeepLab's authors do), 'group' (Wu and He 2018; groups of at most 16 channels) or
  'none'. Statistics are float32 whatever the `dtype`, and the batch's are those of all devices.
  """
  if kind in ('batch', 'frozen_batch'):
    frozen = kind == 'frozen_batch' or not train
    return functools.partial(BatchNorm, frozen, epsilon, dtype)
  if kind == 'group':
    return functools.partial(_group_norm, epsilon=epsilon, dtype=dtype)
  if kind == 'none':
    return lambda name=None: lambda x: x
  raise errors.UserError(f'model.norm is {kind!r}{errors.nearest(kind, NORMS)}')


class BatchNorm(nn.Module):
  """Linen's batch norm, with its variables, in one pass over the map and one multiply-add."""

  frozen: bool  # by the running averages, which stay
  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'N H W C']) -> Float[Array, 'N H W C']:
    size = x.shape[-1:]
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, size)
    running_variance = self.variable('batch_stats', 'var', jnp.ones, size)
    scale = self.param('scale', nn.initializers.ones, size)
    bias = self.param('bias', nn.initializers.zeros, size)
    x = x.astype(jnp.float32)
    if self.frozen:
      mean, variance = running_mean.value, running_variance.value
    else:
      pixels = math.prod(x.shape[:-1]) * devices.num_mapped()
      mean, square = devices.total(jnp.stack([channels.sums(x), channels.sums(x * x)])) / pixels
      variance = jnp.maximum(square - mean * mean, 0)  # rounding may take it below
      if not self.is_initializing():
        for running, batch in ((running_mean, mean), (running_variance, variance)):
          running.value = MOMENTUM * running.value + (1 - MOMENTUM) * lax.stop_gradient(batch)
    multiplier = scale * lax.rsqrt(variance + self.epsilon)
    shift = bias - mean * multiplier
    y = x * channels.spread(multiplier, x.shape) + channels.spread(shift, x.shape)
    return y.astype(self.dtype)


def _group_norm(epsilon, dtype, name=None):
  """The groups follow from the channels, which only the call knows."""
  return lambda x: nn.GroupNorm(
    num_groups=None,
    group_size=math.gcd(16, x.shape[-1]),
    epsilon=epsilon,
    dtype=dtype,
    name=name,
  )(x)
