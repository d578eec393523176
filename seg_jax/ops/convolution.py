"""Convolutions in the form that is quickest on a CPU, with gradients to match.

XLA's own are kept wherever they are as quick. Its 3x3 convolutions of many channels take up to
twice the time that fewer products take (`winograd`); its 1x1 convolutions have a slow gradient of
the kernel, two to three times a matrix product's; over a batch that no cache holds the others'
takes up to four times as long as those of its pictures one by one; its depthwise and grouped ones
have slow gradients of both, ten times and more; kernels larger than the map, as FCN's 7x7 fc6 on
few pixels, are up to sixty times slower than they need be, both ways. Forward-mode and second
derivatives are given up for it.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from seg_jax.ops import channels, winograd
from seg_jax.ops.materialized import materialized

# Values that the kernels of a batch read, each as often as it is read, from which on a gradient of
# the kernel is taken part by part: picture by picture, where there are no more than these parts.
_LARGE, _PARTS = 2**22, 32
# From here on Winograd's form is quicker, by more than its compilation takes: channels that go in
# and that come out, pixels, and products of the definition. Up to so many values that go in and
# come out its copies of them do no harm; a large picture's would fill the memory.
_CHANNELS, _PIXELS, _PRODUCTS, _VALUES = 64, 256, 2**28, 2**25
CONVOLUTION = 'convolution'  # the name, for `jax.checkpoint`, of what a convolution gives


def convolve(
  x: Float[Array, 'N H W C'],
  kernel: Float[Array, 'rows columns C/groups D'],
  window_strides: tuple[int, int],
  padding: str | tuple[tuple[int, int], tuple[int, int]],
  *,
  lhs_dilation: tuple[int, int] = (1, 1),
  rhs_dilation: tuple[int, int] = (1, 1),
  feature_group_count: int = 1,
  **options,
) -> Float[Array, 'N h w D']:
  """`lax.conv_general_dilated` of channels-last maps; `nn.Conv` takes it as its own argument.

  1x1 kernels become matrix products, depthwise kernels (as many groups as channels, in and out)
  sums of shifted products, kernels larger than the map a matrix product over all that they see, 3x3
  kernels of many channels fewer products over tiles (on one CPU device, in float32), and other
  groups are convolved one after the other. Outer taps that read nothing but padding, as those of a
  large rate on a small map, are left out.
  """
  y = _convolved(
    x,
    kernel,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    feature_group_count,
    {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')} | options,
  )
  return checkpoint_name(y, CONVOLUTION)


def product(x: Float[Array, '*places C'], matrix: Float[Array, 'C D']) -> Float[Array, '*places D']:
  """`x @ matrix`, over pixels in one axis, so that a CPU need not turn them for the gradients.

  Several devices may have pixels apart that one axis would bring together.
  """
  if jax.device_count() > 1:
    return x @ matrix
  return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _convolved(
  x, kernel, window_strides, padding, lhs_dilation, rhs_dilation, feature_group_count, how
):
  if lhs_dilation != (1, 1):
    how |= {'lhs_dilation': lhs_dilation, 'feature_group_count': feature_group_count}
    return lax.conv_general_dilated(
      x, kernel, window_strides, padding, rhs_dilation=rhs_dilation, **how
    )
  if isinstance(padding, str):
    extent = [r * (k - 1) + 1 for k, r in zip(kernel.shape[:2], rhs_dilation, strict=True)]
    padding = lax.padtype_to_pads(x.shape[1:3], extent, window_strides, padding)
  padding = tuple(map(tuple, padding))
  kernel, padding = _reaching(x.shape[1:3], kernel, window_strides, padding, rhs_dilation)
  size, inputs = kernel.shape[:2], x.shape[-1]
  geometry = Geometry(tuple(window_strides), padding, tuple(rhs_dilation), tuple(how.items()))
  if feature_group_count == inputs == kernel.shape[-1] > 1:
    return _depthwise(x, kernel, geometry)
  if feature_group_count == 1:
    if size == (1, 1) and padding == ((0, 0), (0, 0)):
      rows, columns = window_strides
      return product(x[:, ::rows, ::columns], kernel[0, 0])
    if _exceeds(size, rhs_dilation, x.shape[1:3]):
      seen = jnp.concatenate(_shifted(x, size, geometry), -1)
      return product(seen, kernel.reshape(-1, kernel.shape[-1]))
  groups = zip(*(jnp.split(a, feature_group_count, -1) for a in (x, kernel)), strict=True)
  parts = [_convolution(a, b, geometry) for a, b in groups]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


class Geometry(NamedTuple):
  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]
  rates: tuple[int, int]
  options: tuple[tuple, ...]  # further ones of `lax.conv_general_dilated`


def _plain(x, kernel, geometry):
  strides, padding, rates, options = geometry
  return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=rates, **dict(options))


def _value(x, kernel, geometry):
  if not _minimal(x, kernel, geometry):
    return _plain(x, kernel, geometry)
  plain = functools.partial(_plain, geometry=geometry)
  return lax.platform_dependent(
    x, kernel, cpu=_winograd(winograd.convolve, geometry), default=plain
  )


_convolution = jax.custom_vjp(_value, nondiff_argnums=(2,))


def _forward(x, kernel, geometry):
  return _value(x, kernel, geometry), (x, kernel)


def _backward(geometry, saved, gradient):
  x, kernel = saved
  plain = functools.partial(_gradients, geometry=geometry)
  if _minimal(x, kernel, geometry):
    quick = _winograd(winograd.gradients, geometry)
  elif math.prod(gradient.shape[:3]) * math.prod(kernel.shape[:3]) >= _LARGE:
    quick = functools.partial(_gradients_by_parts, geometry=geometry)
  else:
    return plain(x, kernel, gradient)
  return lax.platform_dependent(x, kernel, gradient, cpu=quick, default=plain)


_convolution.defvjp(_forward, _backward)


def _winograd(function, geometry):
  return functools.partial(function, padding=geometry.padding, rate=geometry.rates[0])


def _minimal(x, kernel, geometry) -> bool:
  """Whether Winograd's form is quicker on a CPU; on several devices it exchanges too much."""
  strides, padding, (rate, other), _ = geometry
  if (
    kernel.shape[:2] != (3, 3)
    or strides != (1, 1)
    or rate != other
    or not {*padding[0], *padding[1]} <= {0, rate, 2 * rate}
    or not x.dtype == kernel.dtype == jnp.float32
    or min(kernel.shape[2:]) < _CHANNELS
    or jax.device_count() > 1
  ):
    return False
  size = [n + sum(ends) - 2 * rate for n, ends in zip(x.shape[1:3], padding, strict=True)]
  tiled = [-(-n // (2 * rate)) * 2 * rate for n in size]
  pixels = len(x) * math.prod(size)
  return (
    pixels >= _PIXELS
    and pixels * kernel.size >= _PRODUCTS
    and pixels * sum(kernel.shape[2:]) <= _VALUES
    and math.prod(tiled) <= 1.5 * math.prod(size)
  )


def _gradients(x, kernel, gradient, geometry):
  _, pullback = jax.vjp(functools.partial(_plain, geometry=geometry), x, kernel)
  return pullback(gradient)


def _gradients_by_parts(x, kernel, gradient, geometry):
  """The kernel's as the sum of those of the batch's parts."""
  padded = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))  # once, which is quicker
  unpadded = geometry._replace(padding=((0, 0), (0, 0)))
  ends = [len(x) * i // _PARTS for i in range(_PARTS + 1)]

  def of_kernel(x, gradient):
    return jax.vjp(lambda kernel: _plain(x, kernel, unpadded), kernel)[1](gradient)[0]

  _, of_x = jax.vjp(lambda x: _plain(x, kernel, geometry), x)
  parts = [of_kernel(padded[i:j], gradient[i:j]) for i, j in itertools.pairwise(ends) if i < j]
  return of_x(gradient)[0], sum(parts)


def _shifted_products(x, kernel, geometry):
  taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
  return sum(a * b for a, b in zip(_shifted(x, kernel.shape[:2], geometry), taps, strict=True))


_depthwise = jax.custom_vjp(_shifted_products, nondiff_argnums=(2,))


def _depthwise_forward(x, kernel, geometry):
  return _shifted_products(x, kernel, geometry), (kernel, x)


def _depthwise_backward(geometry, saved, gradient):
  back = functools.partial(_depthwise_gradients, geometry)
  return lax.platform_dependent(
    *saved, gradient, cpu=functools.partial(materialized, back), default=back
  )


def _depthwise_gradients(geometry, kernel, x, gradient):
  borders = [
    (rate * (k - 1) - before, n - 1 + before - (m - 1) * stride, stride - 1)
    for n, m, k, stride, (before, _), rate in zip(
      x.shape[1:3], gradient.shape[1:3], kernel.shape[:2], *geometry[:3], strict=True
    )
  ]
  spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *borders, (0, 0, 0)])
  back = Geometry((1, 1), ((0, 0), (0, 0)), geometry.rates, ())
  of_x = _shifted_products(spread, kernel[::-1, ::-1], back)
  seen = _shifted(x, kernel.shape[:2], geometry)
  of_taps = jnp.stack([channels.sums(part * gradient) for part in seen])
  return of_x, of_taps.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _reaching(lengths, kernel, strides, padding, rates):
  """The kernel without outer taps that reach no pixel, and the padding that is left to be read."""
  borders = []
  axes = zip(lengths, kernel.shape[:2], strides, padding, rates, strict=True)
  for axis, (n, k, stride, (before, behind), rate) in enumerate(axes):
    # Where the windows begin, from the border's edge on: at 0, and the last one here.
    last = (n + before + behind - rate * (k - 1) - 1) // stride * stride
    taps = [i for i in range(k) if before - last <= rate * i < before + n] or range(k)
    cut = min(taps[0], max(before, 0) // rate), min(k - 1 - taps[-1], max(behind, 0) // rate)
    if any(cut):
      kernel = lax.slice_in_dim(kernel, cut[0], k - cut[1], axis=axis)
    borders.append((before - rate * cut[0], behind - rate * cut[1]))
  return kernel, tuple(borders)


def _exceeds(size, rates, lengths) -> bool:
  return any(r * (k - 1) + 1 > n for k, r, n in zip(size, rates, lengths, strict=True))


def _shifted(x, size, geometry) -> list[jax.Array]:
  """What each tap of a kernel of `size` sees, row by row: shifted pictures, [N, h, w, C]."""
  strides, padding, rates, _ = geometry
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  rows, columns = (
    [(rate * i, rate * i + (n - rate * (k - 1) - 1) // stride * stride + 1) for i in range(k)]
    for n, k, stride, rate in zip(x.shape[1:3], size, strides, rates, strict=True)
  )
  return [
    x[:, top : bottom : strides[0], left : right : strides[1]]
    for top, bottom in rows
    for left, right in columns
  ]
