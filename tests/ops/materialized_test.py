import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from seg_jax.ops.materialized import materialized


def function(x, y):
  return {'sum': x + y, 'sines': [jnp.sin(x), jnp.sin(y)]}


class MaterializedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x, self.y = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)

  def assert_same(self, got, right):
    jax.tree.map(np.testing.assert_array_equal, got, right)

  def test_gives_what_the_function_gives(self):
    right = jax.jit(function)(self.x, self.y)
    self.assert_same(jax.jit(lambda x, y: materialized(function, x, y))(self.x, self.y), right)
    self.assert_same(jax.vmap(lambda x, y: materialized(function, x, y))(self.x, self.y), right)

  def test_whatever_is_asked_for_a_value(self):
    for value in (np.nan, np.inf, 0):
      self.x[0, 0] = value
      got = materialized(function, self.x, self.y)
      self.assert_same(got, jax.jit(function)(self.x, self.y))

  def test_has_gradients(self):
    got = jax.grad(lambda x: materialized(lambda x: x**2, x).sum())(self.x)
    np.testing.assert_allclose(got, 2 * self.x)

  def test_the_branch_stays(self):
    compiled = jax.jit(lambda x, y: materialized(function, x, y)).lower(self.x, self.y).compile()
    self.assertIn(' conditional(', compiled.as_text())


if __name__ == '__main__':
  absltest.main()
