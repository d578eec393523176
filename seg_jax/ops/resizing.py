"""Ways to another size: transposed convolution (Dumoulin and Visin 2016), bilinear and nearest.

A transposed convolution of stride s moves s pixels in the output for each pixel in the input and
adds up what overlaps; an FCN (Long et al. 2015, section 3.3) learns its upsampling so, starting
from bilinear interpolation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

from seg_jax.ops.convolution import CONVOLUTION, product


def transposed_conv(
  x: Float[Array, 'N H W C'],
  kernel: Float[Array, 'k l C D'],
  stride: int | None = None,
  padding: int = 0,
) -> Float[Array, 'N h w D']:
  """`y[s * i + u - padding, s * j + v - padding] += x[i, j] @ kernel[u, v]`, overlaps summed.

  The stride `s` (if None, the kernel's size: nothing overlaps) is how far the output moves for one
  pixel of the input; `padding` cuts the border off, so h = (H - 1) * s - 2 * padding + k, as in
  PyTorch's ConvTranspose2d without output_padding. It is the transpose, in `y`, of the convolution
  (cross-correlation) of `y` with this stride and padding. ValueError if nothing would be left.
  First-order and reverse mode only.
  """
  stride = stride or kernel.shape[0]
  for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True):
    if (n - 1) * stride - 2 * padding + k < 1:
      raise ValueError(f'padding {padding} leaves nothing of {n} pixels, stride {stride}, size {k}')
  if kernel.shape[:2] == (stride, stride):
    y = _crop(_without_overlap(x, kernel), x, kernel, stride, padding)
  else:
    y = _with_overlap(x, kernel, stride, padding)
  return checkpoint_name(y, CONVOLUTION)


def upsample(
  x: Float[Array, 'N H W C'], kernel: Float[Array, 'k k C D'], stride: int
) -> Float[Array, 'N sH sW D']:
  """Transposed convolution cropped to exactly `stride` times the size.

  (k - stride) // 2 rows and columns go before, the rest behind, as with 'SAME' padding. With
  `bilinear_kernel` that is `stride // 2` on every side, and all but the border, which fades to
  zero, equals `resize_bilinear`. ValueError if the kernel is smaller than the stride.
  """
  extra = kernel.shape[0] - stride
  if extra < 0:
    raise ValueError(f'a kernel of size {kernel.shape[0]} leaves gaps at stride {stride}')
  y = transposed_conv(x, kernel, stride, extra // 2)
  return y[:, : stride * x.shape[1], : stride * x.shape[2]]


def bilinear_kernel(stride: int, channels: int) -> Float[Array, 'k k channels channels']:
  """Bilinear upsampling of each channel by itself, k = 2 * stride - stride % 2: an FCN's start."""
  size = 2 * stride - stride % 2
  triangle = 1 - np.abs(np.arange(size) - (size - 1) / 2) / stride
  kernel = np.einsum('u,v,cd->uvcd', triangle, triangle, np.eye(channels))
  return jnp.asarray(kernel, jnp.float32)


def _without_overlap(x, kernel):
  """One matrix product for each row phase `u`, then an interleaving of rows.

  `lax.conv_transpose` takes 20 times as long for it on a CPU.
  """
  n, height, width, channels = x.shape
  stride, _, _, features = kernel.shape
  phases = [
    product(x, kernel[u].transpose(1, 0, 2).reshape(channels, stride * features)).reshape(
      n, height, stride * width, features
    )
    for u in range(stride)
  ]
  return jnp.stack(phases, 2).reshape(n, stride * height, stride * width, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_overlap(x, kernel, stride, padding):
  if kernel.shape[0] % stride == kernel.shape[1] % stride == 0:
    return _crop(_sub_pixel(x, kernel, stride), x, kernel, stride, padding)
  y = jax.ShapeDtypeStruct(_shape(x, kernel, stride, padding), x.dtype)
  return jax.linear_transpose(lambda y: _strided_conv(y, kernel, stride, padding), y)(x)[0]


def _overlap_backward(stride, padding, residuals, gradient):
  # XLA's own gradient in the kernel takes ten times as long on a CPU as the strided convolution's,
  # which is the same with the operands exchanged.
  x, kernel = residuals
  dx, pullback = jax.vjp(lambda k: _strided_conv(gradient, k, stride, padding), kernel)
  return dx, *pullback(x)


_with_overlap.defvjp(
  lambda x, kernel, stride, padding: (_with_overlap(x, kernel, stride, padding), (x, kernel)),
  _overlap_backward,
)


def _sub_pixel(x, kernel, stride):
  """A kernel of whole strides: each pixel's `stride**2` outputs as channels, then to space."""
  n, height, width, channels = x.shape
  rows, columns, features = kernel.shape[0] // stride, kernel.shape[1] // stride, kernel.shape[3]
  kernel = kernel.reshape(rows, stride, columns, stride, channels, features)[::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(rows, columns, channels, -1)
  border = [(rows - 1, rows - 1), (columns - 1, columns - 1)]
  y = lax.conv_general_dilated(
    x, kernel, (1, 1), border, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  height, width = y.shape[1:3]
  y = y.reshape(n, height, width, stride, stride * features).transpose(0, 1, 3, 2, 4)
  return y.reshape(n, stride * height, stride * width, features)


def _strided_conv(y, kernel, stride, padding):
  """The convolution that `transposed_conv` transposes, from `y` [N, h, w, D] to [N, H, W, C]."""
  layout = ('NHWC', 'HWOI', 'NHWC')
  return lax.conv_general_dilated(
    y, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=layout
  )


def _shape(x, kernel, stride, padding):
  (n, height, width, _), (rows, columns, _, features) = x.shape, kernel.shape
  height, width = (height - 1) * stride + rows, (width - 1) * stride + columns
  return n, height - 2 * padding, width - 2 * padding, features


def _crop(y, x, kernel, stride, padding):
  _, height, width, _ = _shape(x, kernel, stride, padding)
  return y[:, padding : padding + height, padding : padding + width]


def resize_bilinear(
  x: Float[Array, 'N H W C'],
  size: tuple[int, int],
  antialias: bool = True,
  align_corners: bool = False,
) -> Float[Array, 'N h w C']:
  """`x` at `size` = (rows, columns); summed in float32 at least.

  Pixels are squares with their centres at half integers, and the picture's edges stay in place;
  with `align_corners` they are points, and the first and last of each axis stay in place (a single
  new one is the first). With `antialias`, shrinking averages with a triangle as wide as the
  reduction, as Pillow and `jax.image.resize` do; growing is the same either way. Without, it
  equals PyTorch's `interpolate` in both conventions. First-order and reverse mode only.
  """
  return _resize(x, size, 'antialias' if antialias else 'bilinear', align_corners)


def resize_nearest(
  x: Shaped[Array, 'N H W ...'], size: tuple[int, int], align_corners: bool = False
) -> Shaped[Array, 'N h w ...']:
  """`x`, of any dtype, at `size` = (rows, columns), each the nearest old pixel.

  Corners as in `resize_bilinear`; of two equally near pixels the later. Without `align_corners`
  this is PyTorch's 'nearest-exact'; its 'nearest' looks half a pixel aside when it shrinks (and is
  the same for growth by whole factors). First-order and reverse mode only.
  """
  return _resize(x, size, 'nearest', align_corners)


def _resize(x, size, method, align_corners):
  for axis, length in ((1, size[0]), (2, size[1])):
    if x.shape[axis] != length:
      x = _resample(x, axis, length, method, align_corners)
  return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _resample(x, axis, length, method, align_corners):
  return _gather_sum(x, axis, _weights(x.shape[axis], length, method, align_corners))


def _resample_backward(axis, length, method, align_corners, old, gradient):
  # The transposed weights, again as gathers: XLA would scatter, which a CPU does one by one.
  return (_gather_sum(gradient, axis, _weights(old, length, method, align_corners).T),)


_resample.defvjp(
  lambda x, axis, *how: (_resample(x, axis, *how), x.shape[axis]), _resample_backward
)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int, method: str, align_corners: bool) -> np.ndarray:
  """[new, old]: the share of each old sample in each new one; rows sum to one."""
  # Where the new samples lie among the old, as fractions of integers: ties are exact.
  if align_corners:
    numerator, denominator = np.arange(new) * (old - 1), max(new - 1, 1)
    ratio = (old - 1) / (new - 1) if new > 1 else 1.0
  else:
    numerator, denominator = (2 * np.arange(new) + 1) * old - new, 2 * new
    ratio = old / new
  if method == 'nearest':
    return np.eye(old)[(2 * numerator + denominator) // (2 * denominator)]
  centres = (numerator / denominator).clip(0, old - 1)  # the border repeats its last pixel
  width = max(ratio, 1.0) if method == 'antialias' else 1.0
  distance = np.abs(np.arange(old) - centres[:, None]) / width
  weights = np.maximum(1.0 - distance, 0.0)
  return weights / weights.sum(1, keepdims=True)


def _gather_sum(x, axis, weights):
  """`weights` [new, old] times `x` along `axis`, reading only the entries that are not zero."""
  taps = int((weights > 0).sum(1).max())
  indices = np.argsort(weights == 0, axis=1, kind='stable')[:, :taps]
  factors = np.take_along_axis(weights, indices, 1)
  if taps == 1 and (factors == 1).all():
    return jnp.take(x, indices[:, 0], axis, mode='clip')
  shape = [1] * x.ndim
  shape[axis] = len(weights)
  precise = x.dtype if x.dtype.itemsize > 4 else jnp.float32
  total = 0
  for k in range(taps):
    factor = jnp.asarray(factors[:, k].reshape(shape), precise)
    total += jnp.take(x, indices[:, k], axis, mode='clip').astype(precise) * factor
  return total.astype(x.dtype)
