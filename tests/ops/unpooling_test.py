import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops.pooling import max_pool_with_argmax
from seg_jax.ops.unpooling import max_unpool, unpool_bed_of_nails, unpool_nearest

# (rows, columns), window, stride, padding
GEOMETRIES = (
  ((8, 6), 2, None, 0),
  ((7, 9), 2, None, 0),
  ((11, 10), 3, None, 0),
  ((9, 11), 2, 3, 1),
  ((7, 11), (1, 3), (2, 3), (0, 1)),
)


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class MaxUnpoolTest(parameterized.TestCase):
  @parameterized.parameters(*GEOMETRIES)
  def test_equals_pytorch_ties_included(self, size, *geometry):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    functional = torch.nn.functional
    encoder = np.random.default_rng(0).integers(-2, 1, (2, *size, 3)).astype(np.float32)
    gradient = random(2, *size, 3)
    pooled, index = functional.max_pool2d(
      torch.tensor(encoder.transpose(0, 3, 1, 2)), *geometry, return_indices=True
    )
    tx = torch.randn(pooled.shape, requires_grad=True)
    window, stride, padding = geometry
    try:
      ty = functional.max_unpool2d(tx, index, window, stride, padding, output_size=size)
    except ValueError:  # a stride above the window's size may leave more than it allows for
      ty = torch.zeros(2, 3, size[0] * size[1]).scatter(2, index.flatten(2), tx.flatten(2))
      ty = ty.reshape(2, 3, *size)
    ty.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))

    @jax.jit
    def run(encoder, x, gradient):
      _, positions = max_pool_with_argmax(encoder, *geometry)
      y, pullback = jax.vjp(lambda x: max_unpool(x, positions, size, *geometry), x)
      return y, pullback(gradient)[0]

    y, dx = run(encoder, tx.detach().permute(0, 2, 3, 1).numpy(), gradient)
    np.testing.assert_array_equal(y, ty.detach().permute(0, 2, 3, 1))
    np.testing.assert_array_equal(dx, tx.grad.permute(0, 2, 3, 1))

  @parameterized.parameters(*GEOMETRIES)
  def test_keeps_the_maxima_in_place_and_zeros_the_rest(self, size, *geometry):
    x = random(2, *size, 3)

    @jax.jit
    def there_and_back(x):
      pooled, positions = max_pool_with_argmax(x, *geometry)
      return pooled, max_unpool(pooled, positions, size, *geometry)

    pooled, y = map(np.asarray, there_and_back(x))
    np.testing.assert_array_equal(y[y != 0], x[y != 0])
    self.assertEqual(np.count_nonzero(y), pooled.size)

  def test_a_map_by_hand(self):
    x = jnp.asarray([[7, 8]], jnp.float32).reshape(1, 1, 2, 1)
    positions = jnp.asarray([[3, 1]], jnp.uint8).reshape(1, 1, 2, 1)
    y = jax.jit(lambda x, positions: max_unpool(x, positions, (3, 5)))(x, positions)
    expected = [[0, 0, 0, 8, 0], [0, 7, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(y[0, ..., 0], expected)

  def test_overlap_and_wrong_sizes_are_refused(self):
    x, positions = jnp.ones((1, 4, 4, 1)), jnp.zeros((1, 4, 4, 1), jnp.uint8)
    with self.assertRaisesRegex(ValueError, 'overlap'):
      max_unpool(x, positions, (9, 9), 3, 2)
    with self.assertRaisesRegex(ValueError, r'pooling \(7, 8\) gives \(3, 4\)'):
      max_unpool(x, positions, (7, 8))
    with self.assertRaisesRegex(ValueError, 'positions'):
      max_unpool(x, positions[:, :3], (8, 8))


class UnpoolTest(parameterized.TestCase):
  @parameterized.parameters((2,), (3,), (1,), ((2, 3),))
  def test_values_and_gradients_equal_a_kronecker_product(self, factor):
    rows, columns = (factor, factor) if isinstance(factor, int) else factor
    x = random(2, 3, 5, 2)
    nails = np.zeros((rows, columns), np.float32)
    nails[0, 0] = 1
    for unpool, block in ((unpool_nearest, np.ones_like(nails)), (unpool_bed_of_nails, nails)):
      block = block[None, :, :, None]
      gradient = random(2, 3 * rows, 5 * columns, 2)

      @jax.jit
      def run(x, gradient, unpool=unpool):
        y, pullback = jax.vjp(lambda x: unpool(x, factor), x)
        return y, pullback(gradient)[0]

      y, dx = run(x, gradient)
      np.testing.assert_array_equal(y, np.kron(x, block))
      tiles = (gradient * np.tile(block, (1, 3, 5, 1))).reshape(2, 3, rows, 5, columns, 2)
      np.testing.assert_allclose(dx, tiles.sum((2, 4)), atol=1e-6)

  def test_bfloat16_stays_bfloat16(self):
    x, positions = jnp.ones((1, 2, 2, 1), jnp.bfloat16), jnp.zeros((1, 2, 2, 1), jnp.uint8)
    for unpool in (unpool_nearest, unpool_bed_of_nails, lambda x: max_unpool(x, positions, (5, 4))):
      y, dx = jax.eval_shape(
        lambda x, f=unpool: (f(x), jax.grad(lambda x: f(x).astype(jnp.float32).sum())(x)), x
      )
      self.assertEqual((y.dtype, dx.dtype), (jnp.bfloat16, jnp.bfloat16))


if __name__ == '__main__':
  absltest.main()
