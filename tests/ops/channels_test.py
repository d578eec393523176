import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.ops import channels


class ChannelsTest(parameterized.TestCase):
  @parameterized.parameters((3, 5, 7, 4), (1, 1, 1, 3), (1, 6, 1, 2))
  def test_sums_and_their_gradient(self, *shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights = np.arange(1, shape[-1] + 1, dtype=np.float32)
    total, pullback = jax.jit(lambda x: jax.vjp(channels.sums, x))(x)
    np.testing.assert_allclose(total, x.astype(np.float64).sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(pullback(weights)[0], np.broadcast_to(weights, shape))

  def test_spread_and_its_gradient(self):
    shape = (2, 3, 4, 5)
    values = np.arange(5, dtype=np.float32)
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    spread, pullback = jax.vjp(lambda v: channels.spread(v, shape), values)
    np.testing.assert_array_equal(spread, np.broadcast_to(values, shape))
    np.testing.assert_allclose(pullback(gradient)[0], gradient.sum((0, 1, 2)), rtol=1e-5)

  def test_a_large_map_is_summed_in_full_precision(self):
    x = np.random.default_rng(2).uniform(size=(2, 300, 400, 3)).astype(np.float32)
    exact = x.astype(np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(jax.jit(channels.sums)(x), exact, rtol=1e-6)

  def test_half_precision_is_summed_in_float32(self):
    x = jnp.full((2, 40, 50, 1), 1.0078125, jnp.bfloat16)
    total, pullback = jax.vjp(channels.sums, x)
    self.assertEqual(total.dtype, jnp.float32)
    np.testing.assert_allclose(total, [4031.25])
    self.assertEqual(pullback(jnp.ones(1))[0].dtype, jnp.bfloat16)


if __name__ == '__main__':
  absltest.main()
