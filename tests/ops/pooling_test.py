import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.pooling import max_pool


def brute_force(x, gradient, window):
  """The maximum of each block and the gradient at its first maximum, one block at a time."""
  n, rows, columns, channels = gradient.shape
  y, dx = np.zeros_like(gradient), np.zeros_like(x)
  for b, i, j, c in np.ndindex(n, rows, columns, channels):
    top, left = i * window, j * window
    block = x[b, top : top + window, left : left + window, c]
    u, v = np.unravel_index(np.argmax(block), block.shape)
    y[b, i, j, c] = block[u, v]
    dx[b, top + u, left + v, c] = gradient[b, i, j, c]
  return y, dx


class MaxPoolTest(parameterized.TestCase):
  @parameterized.parameters((2, 8, 6), (2, 7, 9), (3, 10, 11), (1, 4, 5))
  def test_value_and_gradient_equal_a_loop_ties_included(self, window, rows, columns):
    rng = np.random.default_rng(window)
    x = rng.integers(0, 3, (2, rows, columns, 3)).astype(np.float32)  # many ties
    gradient = rng.normal(size=(2, rows // window, columns // window, 3)).astype(np.float32)
    y, pullback = jax.vjp(lambda x: max_pool(x, window), jnp.asarray(x))
    expected_y, expected_dx = brute_force(x, gradient, window)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(pullback(jnp.asarray(gradient))[0], expected_dx)

  def test_bfloat16_stays_bfloat16(self):
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    y, pullback = jax.vjp(max_pool, x)
    self.assertEqual(y.dtype, jnp.bfloat16)
    self.assertEqual(pullback(y)[0].dtype, jnp.bfloat16)


if __name__ == '__main__':
  absltest.main()
