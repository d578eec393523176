"""Ways to go back up: the transposed convolution that does not overlap, and bilinear resizing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def transposed_conv(
  x: Float[Array, 'N H W C'], kernel: Float[Array, 's s C D']
) -> Float[Array, 'N sH sW D']:
  """Transposed convolution whose stride is its kernel's size `s`: outputs do not overlap.

  `y[s * i + u, s * j + v] = x[i, j] @ kernel[u, v]`: one matrix product for each row phase `u`,
  then an interleaving of rows. `lax.conv_transpose` takes 20 times as long for it on a CPU.
  """
  n, height, width, channels = x.shape
  stride, _, _, features = kernel.shape
  phases = [
    (x @ kernel[u].transpose(1, 0, 2).reshape(channels, stride * features)).reshape(
      n, height, stride * width, features
    )
    for u in range(stride)
  ]
  return jnp.stack(phases, 2).reshape(n, stride * height, stride * width, features)


def resize_bilinear(
  x: Float[Array, 'N H W C'], size: tuple[int, int], antialias: bool = True
) -> Float[Array, 'N h w C']:
  """`x` at `size` = (rows, columns), pixel centres at half integers (align_corners=False).

  With `antialias`, shrinking averages with a triangle as wide as the reduction, as Pillow and
  `jax.image.resize` do; growing is the same either way. First-order and reverse mode only.
  """
  for axis, length in ((1, size[0]), (2, size[1])):
    if x.shape[axis] != length:
      x = _resample(x, axis, length, antialias)
  return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resample(x, axis, length, antialias):
  return _gather_sum(x, axis, _weights(x.shape[axis], length, antialias))


def _resample_backward(axis, length, antialias, residuals, gradient):
  # The transposed weights, again as gathers: XLA would scatter, which a CPU does one by one.
  return (_gather_sum(gradient, axis, _weights(residuals, length, antialias).T),)


_resample.defvjp(
  lambda x, axis, length, antialias: (_resample(x, axis, length, antialias), x.shape[axis]),
  _resample_backward,
)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int, antialias: bool) -> np.ndarray:
  """[new, old]: the share of each old sample in each new one; rows sum to one."""
  ratio = old / new
  width = max(ratio, 1.0) if antialias else 1.0
  centres = (np.arange(new) + 0.5) * ratio - 0.5
  if width == 1.0:  # the border repeats its last pixel
    centres = centres.clip(0, old - 1)
  distance = np.abs(np.arange(old) - centres[:, None]) / width
  weights = np.maximum(1.0 - distance, 0.0)
  return weights / weights.sum(1, keepdims=True)


def _gather_sum(x, axis, weights):
  """`weights` [new, old] times `x` along `axis`, reading only the entries that are not zero."""
  taps = int((weights > 0).sum(1).max())
  indices = np.argsort(weights == 0, axis=1, kind='stable')[:, :taps]
  factors = np.take_along_axis(weights, indices, 1)
  shape = [1] * x.ndim
  shape[axis] = len(weights)
  total = 0
  for k in range(taps):
    factor = jnp.asarray(factors[:, k].reshape(shape), x.dtype)
    total += jnp.take(x, indices[:, k], axis, mode='clip') * factor
  return total
