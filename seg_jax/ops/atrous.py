"""Denser maps from a network with strides: à trous, and shift-and-stitch to check it against.

DeepLab (Chen et al. 2017, section 3.1) takes strides away and puts holes (trous) into all later
filters. OverFeat (Sermanet et al. 2014, section 3.3) and FCN (Long et al. 2015, section 3.2) run
the network as it is on shifted pictures and interleave the results: the same map, at more cost.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def atrous_plan(strides: Sequence[int], output_stride: int) -> list[tuple[int, int]]:
  """The (stride, rate) of each layer of a chain, so that the chain's stride is `output_stride`.

  `strides` are the chain's own, in order, of convolutions and pooling windows alike; `rate` is the
  dilation of the layer's kernel or window. Once the strides so far multiply to `output_stride`,
  each further one becomes 1 and multiplies the rate of the layers *behind* it; the layer itself
  keeps the rate that it has, since its stride does not change what it reads. (So does DeepLab's
  `stack_blocks_dense`.) ValueError if no product of the first strides is `output_stride`.
  """
  plan, reached, rate = [], 1, 1
  for stride in strides:
    if reached == output_stride:
      plan.append((1, rate))
      rate *= stride
    else:
      plan.append((stride, 1))
      reached *= stride
  if reached != output_stride:
    products = sorted({int(p) for p in np.cumprod([1, *strides])})
    raise ValueError(f'output stride {output_stride} is none of {products}')
  return plan


def atrous_units(strides: Sequence[int], output_stride: int) -> list[tuple[int, int, int]]:
  """`atrous_plan` for units of several layers: the (stride, rate, rate behind the stride) of each.

  A unit's layers up to the one that strides take the first rate, those behind it the second.
  """
  plan = zip(strides, atrous_plan(strides, output_stride), strict=True)
  return [(stride, rate, rate * whole // stride) for whole, (stride, rate) in plan]


def shift_and_stitch(
  function: Callable[[Float[Array, 'N H W C']], Float[Array, 'N h w D']],
  image: Float[Array, 'N H W C'],
  stride: int,
  batch_size: int | None = None,
) -> Float[Array, 'N H_ W_ D']:
  """A dense map from a pure `function` whose outputs are `stride` pixels apart.

  For each shift (a, b), 0 <= a, b < stride, `function` sees the picture moved up by a and left by
  b, at its own size, and its output [o, p] becomes the result's [stride * o + a, stride * p + b].

  The border: the a rows and b columns that are moved out are lost, and zeros come in from below
  and from the right. If `function` pads nothing itself and its window is R pixels, row d of the
  result is thus what it gives for rows d to d + R - 1 of the picture: rows 0 to H - R, all that à
  trous has, read the picture alone, and those behind read zeros too. If it pads, it pads a moved
  picture where that begins, so near the upper and left border à trous gives other values. The
  result has stride * h rows, but no more than H; columns likewise.

  The shifts run one after the other, or `batch_size` at once, with as many times the memory.
  """
  n, height, width, channels = image.shape
  padded = jnp.pad(image, ((0, 0), (0, stride - 1), (0, stride - 1), (0, 0)))

  def shifted(shift):
    start = (0, shift[0], shift[1], 0)
    return function(lax.dynamic_slice(padded, start, (n, height, width, channels)))

  shifts = jnp.asarray(list(np.ndindex(stride, stride)), jnp.int32)
  maps = lax.map(shifted, shifts, batch_size=batch_size)  # [stride**2, N, h, w, D]
  _, _, rows, columns, features = maps.shape
  maps = maps.reshape(stride, stride, n, rows, columns, features).transpose(2, 3, 0, 4, 1, 5)
  dense = maps.reshape(n, stride * rows, stride * columns, features)
  return dense[:, :height, :width]
