import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.models.norms import make_norm

SHAPE = (4, 6, 5, 3)


def arrays():
  rng = np.random.default_rng(0)
  x = rng.normal(size=SHAPE) * (1, 3, 0.5) + (0, 2, -1)
  variables = {
    'params': {'scale': rng.uniform(0.5, 2, 3), 'bias': rng.normal(size=3)},
    'batch_stats': {'mean': rng.normal(size=3), 'var': rng.uniform(0.5, 2, 3)},
  }
  return jax.tree.map(jnp.float32, (x, variables, rng.normal(size=SHAPE)))


def all_of(norm, x, variables, cotangent):
  """The result, the new running averages, the gradients of x and of the parameters."""

  @jax.jit
  def run(x, params):
    def apply(x, params):
      return norm.apply(variables | {'params': params}, x, mutable=['batch_stats'])

    y, pullback, stats = jax.vjp(apply, x, params, has_aux=True)
    return y, stats, pullback(cotangent.astype(y.dtype))

  return run(x, variables['params'])


class BatchNormTest(parameterized.TestCase):
  @parameterized.parameters(('batch', True), ('batch', False), ('frozen_batch', True))
  def test_equals_linens(self, kind, train):
    own = make_norm(kind, train, jnp.float32)()
    average = kind == 'frozen_batch' or not train
    linens = nn.BatchNorm(use_running_average=average, momentum=0.9, epsilon=1e-5)
    results = [all_of(norm, *arrays()) for norm in (own, linens)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)

  def test_starts_as_linens(self):
    x = jnp.ones(SHAPE)
    own = make_norm('batch', True, jnp.float32)().init(jax.random.key(0), x)
    linens = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, own, linens)

  def test_half_precision_has_statistics_of_float32(self):
    x, variables, cotangent = arrays()
    norm = make_norm('batch', True, jnp.bfloat16)()
    y, stats, (of_x, _) = all_of(norm, x.astype(jnp.bfloat16), variables, cotangent)
    self.assertEqual((y.dtype, of_x.dtype), (jnp.bfloat16, jnp.bfloat16))
    mean = np.asarray(x.astype(jnp.bfloat16), np.float64).mean((0, 1, 2))
    expected = 0.9 * variables['batch_stats']['mean'] + 0.1 * mean
    np.testing.assert_allclose(stats['batch_stats']['mean'], expected, rtol=1e-5, atol=1e-6)

  def test_a_constant_channel_is_no_division_by_zero(self):
    x = jnp.full(SHAPE, 1000.1)
    y, _, (of_x, _) = all_of(make_norm('batch', True, jnp.float32)(), x, *arrays()[1:])
    self.assertTrue(np.isfinite(y).all() and np.isfinite(of_x).all())

  def test_an_unknown_kind_names_those_there_are(self):
    with self.assertRaisesRegex(UserError, "'bach'.*batch"):
      make_norm('bach', True, jnp.float32)


if __name__ == '__main__':
  absltest.main()
