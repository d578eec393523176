import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax import depth_losses
from seg_jax.errors import UserError


@functools.cache
def compiled(name):
  """Value and gradient of a loss, compiled once for all tests."""
  return jax.jit(jax.value_and_grad(depth_losses.named(name)))


def example(shape=(3, 4, 5), seed=0):
  """Depths of a few metres; a third of the truth, and all of its second picture, is not known."""
  rng = np.random.default_rng(seed)
  depth, truth = np.exp(rng.normal(1, 0.6, (2, *shape))).astype(np.float32)
  truth[rng.random(shape) < 0.3] = 0
  truth[1] = 0
  return depth, truth


def pairs(depth, truth):
  """Prediction and truth of each pixel that is known, in order, as Python floats."""
  known = truth > 0
  return list(zip(depth[known].tolist(), truth[known].tolist(), strict=True))


def l1_by_loop(depth, truth):
  return np.mean([abs(y - t) for y, t in pairs(depth, truth)])


def berhu_by_loop(depth, truth, c=None):
  c = c or max(abs(y - t) for y, t in pairs(depth, truth)) / 5
  costs = []
  for y, t in pairs(depth, truth):
    x = abs(y - t)
    costs.append(x if x <= c else (x**2 + c**2) / (2 * c))
  return np.mean(costs)


def scale_invariant_by_loop(depth, truth):
  costs = []
  for picture in zip(depth, truth, strict=True):
    differences = [math.log(y) - math.log(t) for y, t in pairs(*picture)]
    if n := len(differences):
      costs.append(sum(d * d for d in differences) / n - sum(differences) ** 2 / (2 * n * n))
  return np.mean(costs)


BY_LOOP = {'l1': l1_by_loop, 'berhu': berhu_by_loop, 'scale_invariant': scale_invariant_by_loop}


def numerical_gradient(function, depth, truth, step=1e-5):
  depth = depth.astype(np.float64)
  gradient = np.zeros_like(depth)
  for index in zip(*np.nonzero(truth), strict=True):
    up, down = depth.copy(), depth.copy()
    up[index] += step
    down[index] -= step
    gradient[index] = (function(up, truth) - function(down, truth)) / (2 * step)
  return gradient


class DepthLossesTest(parameterized.TestCase):
  @parameterized.parameters(*BY_LOOP)
  def test_equals_loop_in_value_and_gradient(self, name):
    depth, truth = example()
    value, gradient = compiled(name)(depth, truth)
    np.testing.assert_allclose(value, BY_LOOP[name](depth, truth), rtol=1e-5)
    by_loop = BY_LOOP[name]
    if name == 'berhu':  # whose c counts as a constant
      by_loop = functools.partial(by_loop, c=max(abs(y - t) for y, t in pairs(depth, truth)) / 5)
    np.testing.assert_allclose(gradient, numerical_gradient(by_loop, depth, truth), atol=1e-4)

  def test_by_hand(self):
    """Errors of 1, 2, 0 and 5 metres, so c is 1: the costs are 1, (4 + 1) / 2, 0 and (25 + 1) / 2.

    In logarithms, two pixels of twice the depth: ln(2)^2 - ln(2)^2 / 2.
    """
    truth = np.float32([[[3, 4, 5, 1, 0]]])
    depth = np.float32([[[2, 6, 5, 6, 9]]])
    self.assertAlmostEqual(float(depth_losses.l1(depth, truth)), 8 / 4, places=6)
    self.assertAlmostEqual(float(depth_losses.berhu(depth, truth)), 16.5 / 4, places=6)
    loss = depth_losses.scale_invariant(np.float32([[[2, 6, 7]]]), np.float32([[[1, 3, 0]]]))
    self.assertAlmostEqual(float(loss), math.log(2) ** 2 / 2, places=6)

  def test_berhu_is_smooth_at_c_and_keeps_the_gradient_of_small_errors(self):
    truth = np.full((1, 1, 4), 50, np.float32)
    depth = truth + np.float32([[[10, 2.001, 1.999, 0.01]]])  # c is 2
    _, gradient = compiled('berhu')(depth, truth)
    np.testing.assert_allclose(4 * gradient[0, 0], [10 / 2, 1.0005, 1, 1], rtol=1e-4)

  @parameterized.parameters((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
  def test_the_scale_counts_by_one_less_the_balance(self, balance, share):
    """All depths three times too large cost that share of ln(3)^2."""
    _, truth = example()
    loss = depth_losses.scale_invariant(3 * truth + (truth == 0), truth, balance)
    self.assertAlmostEqual(float(loss), share * math.log(3) ** 2, places=5)

  @parameterized.parameters(*BY_LOOP)
  def test_what_is_not_known_changes_nothing(self, name):
    depth, truth = example()
    value, gradient = compiled(name)(depth, truth)
    unknown = truth == 0
    np.testing.assert_array_equal(gradient[unknown], 0)
    depth[unknown] = 1e6
    other_value, other_gradient = compiled(name)(depth, truth)
    self.assertEqual(value, other_value)
    np.testing.assert_array_equal(gradient, other_gradient)

  @parameterized.parameters(*BY_LOOP)
  def test_is_zero_with_zero_gradient_where_nothing_is_known(self, name):
    depth, truth = example()
    value, gradient = compiled(name)(depth, 0 * truth)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*BY_LOOP)
  def test_is_zero_with_zero_gradient_where_all_is_right(self, name):
    _, truth = example()
    value, gradient = compiled(name)(truth + (truth == 0), truth)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*BY_LOOP)
  def test_bfloat16_is_computed_in_float32(self, name):
    depth, truth = example()
    depth = jnp.asarray(depth, jnp.bfloat16)
    value, gradient = compiled(name)(depth, truth)
    self.assertEqual((value.dtype, gradient.dtype), (jnp.float32, jnp.bfloat16))
    expected, _ = compiled(name)(depth.astype(jnp.float32), truth)
    np.testing.assert_allclose(value, expected, rtol=1e-6)

  def test_unknown_name(self):
    with self.assertRaisesRegex(UserError, "loss.depth is 'berhuu'; did you mean 'berhu'"):
      depth_losses.named('berhuu')


if __name__ == '__main__':
  absltest.main()
