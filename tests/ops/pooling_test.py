import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.pooling import flat_indices, max_pool, max_pool_with_argmax, mean_pool

# (rows, columns), window, stride, padding, dilation
GEOMETRIES = (
  ((8, 6), 2, None, 0, 1),
  ((7, 9), 2, None, 0, 1),
  ((9, 13), 3, 2, 1, 1),
  ((7, 6), 3, 1, 1, 1),
  ((9, 8), 2, 1, 0, 2),
  ((11, 12), 3, 1, 2, 2),
  ((9, 11), 2, 3, 1, 1),
  ((12, 13), 3, 2, 2, 3),
  ((9, 10), (2, 3), (1, 2), (0, 1), (3, 1)),
)


def ties(size, seed=0):
  return np.random.default_rng(seed).integers(-2, 1, (2, *size, 3)).astype(np.float32)


def brute_force(x, gradient, window, stride, padding, dilation):
  """Maxima, their flat indices, and the gradient at each window's first maximum, one by one."""
  (k, m), (s, t), (p, q), (d, e) = (
    n if isinstance(n, tuple) else (n, n) for n in (window, stride or window, padding, dilation)
  )
  height, width = x.shape[1:3]
  y, index, dx = np.zeros_like(gradient), np.zeros(gradient.shape, int), np.zeros_like(x)
  for b, i, j, c in np.ndindex(gradient.shape):
    best = None
    for u, v in np.ndindex(k, m):
      row, column = i * s - p + u * d, j * t - q + v * e
      inside = 0 <= row < height and 0 <= column < width
      if inside and (best is None or x[b, row, column, c] > x[b, *best, c]):
        best = row, column
    y[b, i, j, c] = x[b, *best, c]
    index[b, i, j, c] = best[0] * width + best[1]
    dx[b, *best, c] += gradient[b, i, j, c]
  return y, index, dx


@functools.lru_cache
def compiled(size, geometry):
  @jax.jit
  def run(x, gradient):
    y, pullback, positions = jax.vjp(lambda x: max_pool_with_argmax(x, *geometry), x, has_aux=True)
    return y, flat_indices(positions, size, *geometry), pullback(gradient)[0]

  return run


class MaxPoolTest(parameterized.TestCase):
  @parameterized.parameters(*GEOMETRIES)
  def test_value_position_and_gradient_equal_a_loop_ties_included(self, size, *geometry):
    x = ties(size)
    shape = jax.eval_shape(lambda x: max_pool(x, *geometry), x).shape
    gradient = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    y, index, dx = compiled(size, tuple(geometry))(x, gradient)
    expected_y, expected_index, expected_dx = brute_force(x, gradient, *geometry)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-6)

  # PyTorch's padding is at most half of the window before dilation.
  @parameterized.parameters(*(g for g in GEOMETRIES if g[3] != 2))
  def test_equals_pytorch(self, size, *geometry):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    x = ties(size, seed=1)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    ty, expected_index = torch.nn.functional.max_pool2d(tx, *geometry, return_indices=True)
    gradient = torch.randn(ty.shape)
    ty.backward(gradient)
    y, index, dx = compiled(size, tuple(geometry))(x, gradient.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
    np.testing.assert_array_equal(index, expected_index.permute(0, 2, 3, 1))
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), atol=1e-6)

  def test_a_map_by_hand(self):
    x = jnp.asarray([[1, 5, 2], [5, 4, 2], [0, 0, 9]], jnp.float32).reshape(1, 3, 3, 1)
    y, positions = jax.jit(lambda x: max_pool_with_argmax(x, 2, 1))(x)
    np.testing.assert_array_equal(y[0, ..., 0], [[5, 5], [5, 9]])
    np.testing.assert_array_equal(positions[0, ..., 0], [[1, 0], [0, 3]])
    dx = jax.jit(jax.grad(lambda x: max_pool(x, 2, 1).sum()))(x)
    np.testing.assert_array_equal(dx[0, ..., 0], [[0, 2, 0], [1, 0, 0], [0, 0, 1]])

  def test_dilated_pooling_keeps_every_phase_of_the_strided(self):
    """À trous: stride taken from one pooling, dilation given to the next."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 13, 11, 2)).astype(np.float32))
    dense = jax.jit(lambda x: max_pool(max_pool(x, 2, 1), 2, 1, dilation=2))(x)
    for i, j in ((0, 0), (1, 2), (3, 3)):
      strided = jax.jit(lambda x: max_pool(max_pool(x, 2), 2))(x[:, i:, j:])
      np.testing.assert_array_equal(dense[:, i::4, j::4], strided)

  def test_bfloat16_stays_bfloat16(self):
    x = jnp.ones((1, 5, 5, 1), jnp.bfloat16)
    for pool in (max_pool, mean_pool):
      for geometry in ((2,), (3, 2, 1)):
        y, dx = jax.eval_shape(
          lambda x, p=pool, g=geometry: (p(x, *g), jax.grad(lambda x: p(x, *g).sum())(x)), x
        )
        self.assertEqual((y.dtype, dx.dtype), (jnp.bfloat16, jnp.bfloat16))

  @parameterized.parameters(((9,), 'no window fits'), ((2, 1, 2), 'half'), ((0,), 'at least 1'))
  def test_impossible_windows_are_refused(self, geometry, message):
    for pool in (max_pool, mean_pool):
      with self.assertRaisesRegex(ValueError, message):
        pool(jnp.ones((1, 8, 8, 1)), *geometry)

  def test_a_window_of_more_pixels_than_a_byte_counts_is_refused(self):
    x = jnp.ones((1, 20, 20, 1))
    self.assertEqual(jax.eval_shape(lambda x: max_pool(x, 16), x).shape, (1, 1, 1, 1))
    with self.assertRaisesRegex(ValueError, '256'):
      max_pool(x, 17)


class MeanPoolTest(parameterized.TestCase):
  @parameterized.product(
    geometry=tuple(g[:-1] for g in GEOMETRIES if g[-1] == 1), count_include_pad=(True, False)
  )
  def test_value_and_gradient_equal_pytorch(self, geometry, count_include_pad):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    size, *geometry = geometry
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    ty = torch.nn.functional.avg_pool2d(tx, *geometry, count_include_pad=count_include_pad)
    gradient = torch.randn(ty.shape)
    ty.backward(gradient)

    @jax.jit
    def run(x, gradient):
      pool = functools.partial(mean_pool, count_include_pad=count_include_pad)
      y, pullback = jax.vjp(lambda x: pool(x, *geometry), x)
      return y, pullback(gradient)[0]

    y, dx = run(x, gradient.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), atol=1e-6)

  def test_padding_counts_or_does_not(self):
    x = jnp.ones((1, 3, 3, 1))
    for count_include_pad, expected in ((True, 4 / 9), (False, 1)):
      y = jax.jit(lambda x, c=count_include_pad: mean_pool(x, 3, 2, 1, count_include_pad=c))(x)
      np.testing.assert_allclose(y, np.full((1, 2, 2, 1), expected), rtol=1e-6)

  def test_dilated_windows_skip_pixels(self):
    x = jnp.arange(9, dtype=jnp.float32).reshape(1, 3, 3, 1)
    self.assertEqual(float(mean_pool(x, 2, 1, 0, 2)[0, 0, 0, 0]), (0 + 2 + 6 + 8) / 4)


if __name__ == '__main__':
  absltest.main()
