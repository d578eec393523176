import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs import common
from seg_jax.errors import UserError
from seg_jax.training.optimizer import make_optimizer, make_schedule


def config(**values):
  with (optimizer := common.get_config().optimizer).unlocked():
    optimizer.update(values)
  return optimizer


class ScheduleTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it

  @parameterized.parameters(
    ('constant', {}, {0: 0.5, 99: 0.5}),
    ('poly', {'poly_power': 0.9}, {0: 0.5, 50: 0.5 * 0.5**0.9, 99: 0.5 * 0.01**0.9}),
    ('cosine', {}, {0: 0.5, 50: 0.25, 25: 0.25 * (1 + np.cos(np.pi / 4))}),
    (
      'step',
      {'step_boundaries': (0.5, 0.75), 'step_factor': 0.1},
      {0: 0.5, 49: 0.5, 51: 0.05, 74: 0.05, 76: 0.005},
    ),
  )
  def test_values_computed_by_hand(self, name, values, expected):
    schedule = make_schedule(config(schedule=name, learning_rate=0.5, **values), 100)
    for step, rate in expected.items():
      self.assertAlmostEqual(float(schedule(step)), rate, places=6, msg=str(step))

  @parameterized.parameters('constant', 'poly', 'cosine', 'step')
  def test_warm_up_is_linear_and_ends_at_the_rate(self, name):
    schedule = make_schedule(config(schedule=name, learning_rate=0.4, warmup_steps=10), 100)
    rates = [float(schedule(step)) for step in (0, 5, 10)]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4], atol=1e-7)

  def test_step_boundaries_are_shares_of_all_steps_whatever_the_warm_up(self):
    schedule = make_schedule(
      config(schedule='step', learning_rate=1.0, warmup_steps=10, step_boundaries=(0.5,)), 100
    )
    self.assertAlmostEqual(float(schedule(49)), 1.0)
    self.assertAlmostEqual(float(schedule(51)), 0.1)

  @parameterized.parameters({'schedule': 'cosin'}, {'warmup_steps': 100}, {'warmup_steps': -1})
  def test_what_cannot_be_is_the_users_error(self, **values):
    with self.assertRaisesRegex(UserError, f'optimizer.{next(iter(values))} is'):
      make_schedule(config(**values), 100)


class OptimizerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it

  @parameterized.parameters('sgd', 'adamw', 'rmsprop')
  def test_weight_decay_touches_kernels_only(self, name):
    optimizer = make_optimizer(config(name=name, weight_decay=0.1), optax.constant_schedule(1e-3))
    params = {'a': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2), 'scale': jnp.ones(2)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    self.assertLess(float(updates['a']['kernel'].max()), 0)
    np.testing.assert_array_equal(updates['a']['bias'], 0)
    np.testing.assert_array_equal(updates['a']['scale'], 0)

  @parameterized.parameters('sgd', 'adamw')
  def test_five_steps_equal_pytorchs(self, name):
    try:
      import torch
    except ImportError:
      self.skipTest('PyTorch is not installed')
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4)).astype(np.float32)
    gradients = rng.normal(size=(5, 3, 4)).astype(np.float32)
    tensor = torch.nn.Parameter(torch.tensor(start))
    rules = {
      'sgd': lambda: torch.optim.SGD([tensor], 0.01, momentum=0.9, weight_decay=0.1),
      'adamw': lambda: torch.optim.AdamW([tensor], 0.01, weight_decay=0.1),
    }
    theirs = rules[name]()
    ours = make_optimizer(config(name=name, weight_decay=0.1), optax.constant_schedule(0.01))
    params = {'kernel': jnp.asarray(start)}
    state = ours.init(params)
    for gradient in gradients:
      tensor.grad = torch.tensor(gradient)
      theirs.step()
      updates, state = ours.update({'kernel': jnp.asarray(gradient)}, state, params)
      params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params['kernel'], tensor.detach(), atol=1e-5)

  def test_the_whole_gradient_is_clipped(self):
    optimizer = make_optimizer(
      config(name='sgd', momentum=0.0, weight_decay=0.0, clip_norm=1.0),
      optax.constant_schedule(1.0),
    )
    params = {'x': {'bias': jnp.zeros(2)}, 'y': {'bias': jnp.zeros(1)}}
    grads = {'x': {'bias': jnp.array([3.0, 0.0])}, 'y': {'bias': jnp.array([4.0])}}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates['x']['bias'], [-0.6, 0], atol=1e-6)
    np.testing.assert_allclose(updates['y']['bias'], [-0.8], atol=1e-6)

  def test_an_unknown_name_is_the_users_error(self):
    with self.assertRaisesRegex(UserError, "optimizer.name is 'adam'; did you mean 'adamw'"):
      make_optimizer(config(name='adam'), optax.constant_schedule(1.0))


if __name__ == '__main__':
  absltest.main()
