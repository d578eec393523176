"""Convolution as a matrix, for the eye: a convolution is X a, its transposed convolution X^T a.

With kernel (x, y, z), four pixels, stride 2 and padding 1, X is

    y z 0 0
    0 x y z

Each row is the kernel, moved on by one stride. In X^T the columns overlap: the transposed
convolution lays a kernel for each pixel of its input, one stride apart, and adds them up (Dumoulin
and Visin 2016, section 4).
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def conv_matrix(
  kernel: Float[Array, '*k'], input_shape: tuple[int, ...], stride: int = 1, padding: int = 0
) -> Float[Array, 'outputs inputs']:
  """The X [outputs, inputs] with `X @ a.ravel()` = the convolution of `a` with `kernel`, flat.

  In 1-D or 2-D, of a single channel: `kernel` [k] and `a` [n], or [k, l] and [n, m]. Convolution
  is cross-correlation, the networks' convention: the kernel is not flipped. Maps are flattened row
  by row; along each axis, (n + 2 * padding - k) // stride + 1 are the outputs. `X.T @ b.ravel()`
  is the transposed convolution of `b`, with `input_shape`: if the stride divides
  n + 2 * padding - k, that of `resizing.transposed_conv` with this stride and padding. ValueError
  if the numbers of axes do not agree, or if the kernel does not fit.
  """
  if kernel.ndim != len(input_shape) or kernel.ndim not in (1, 2):
    raise ValueError(f'a kernel of shape {kernel.shape} and an input of shape {input_shape}')
  outputs = [
    (n + 2 * padding - k) // stride + 1 for n, k in zip(input_shape, kernel.shape, strict=True)
  ]
  if min(outputs) < 1:
    raise ValueError(f'a kernel of shape {kernel.shape} does not fit into {input_shape}')
  matrix = kernel
  for axis, (n, m) in enumerate(zip(input_shape, outputs, strict=True)):
    # The entry of the kernel that output o lays on input i; elsewhere the matrix is 0.
    tap = np.arange(n) + padding - stride * np.arange(m)[:, None]
    inside = (tap >= 0) & (tap < kernel.shape[axis])
    matrix = jnp.take(matrix, np.where(inside, tap, 0), 2 * axis)
    matrix *= inside.reshape([1] * (2 * axis) + [m, n] + [1] * (kernel.ndim - 1 - axis)).astype(
      matrix.dtype
    )
  matrix = matrix.transpose(*range(0, 2 * kernel.ndim, 2), *range(1, 2 * kernel.ndim, 2))
  return matrix.reshape(math.prod(outputs), math.prod(input_shape))
