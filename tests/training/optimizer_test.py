import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs import common
from seg_jax.errors import UserError
from seg_jax.models.deeplab_v3plus import DeepLabV3Plus
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.optimizer import make_optimizer, make_schedule


def config(**values):
  with (optimizer := common.get_config().optimizer).unlocked():
    optimizer.update(values)
  return optimizer


def falling(step):
  return 0.1 / (1 + step)


def parameters():
  rng = np.random.default_rng(0)

  def layer(*shape):
    return {'kernel': rng.normal(size=shape), 'bias': rng.normal(size=shape[-1:])}

  tree = {'backbone': {'stage1': layer(20, 30), 'stage2': layer(3, 4)}, 'head': layer(4, 2)}
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def named(tree):
  """The leaves by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def after_three_steps(optimizer, params):
  """Each parameter's gradient is its own sine, times the number of the step."""
  state = optimizer.init(params)
  for step in (1, 2, 3):
    gradients = jax.tree.map(lambda x, step=step: step * jnp.sin(x), params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return params


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

  @parameterized.parameters('sgd', 'adamw', 'rmsprop')
  def test_a_group_learns_and_decays_as_if_it_were_alone(self, name):
    """By the last pattern that its path matches."""
    groups = (('^backbone/', 0.0, 0.0), ('^backbone/stage2', 0.1, 3.0), ('bias', 2.0, 1.0))
    together = make_optimizer(config(name=name, weight_decay=0.1, groups=groups), falling)
    alone = {
      'backbone/stage2/kernel': (0.1, 3.0),
      'backbone/stage2/bias': (2.0, 1.0),
      'head/kernel': (1.0, 1.0),
    }
    start = parameters()
    self.assertContainsSubset(alone, named(start))
    moved = named(after_three_steps(together, start))
    for path, (rate, decay) in alone.items():
      rule = make_optimizer(
        config(name=name, weight_decay=0.1 * decay), lambda step, rate=rate: rate * falling(step)
      )
      leaf = path.rpartition('/')[2]
      expected = after_three_steps(rule, {leaf: named(start)[path]})[leaf]
      self.assertGreater(float(jnp.abs(expected - named(start)[path]).max()), 1e-4)
      np.testing.assert_allclose(moved[path], expected, rtol=1e-6, err_msg=path)

  @parameterized.parameters('sgd', 'adamw', 'rmsprop')
  def test_a_rate_of_zero_freezes_and_takes_no_memory(self, name):
    frozen = make_optimizer(
      config(name=name, weight_decay=0.1, groups=(('^backbone/stage1', 0.0, 1.0),)), falling
    )
    start = parameters()
    after = named(after_three_steps(frozen, start))
    for path, value in named(start).items():
      still = path.startswith('backbone/stage1')
      self.assertEqual(np.array_equal(after[path], value), still, path)
    largest = max(leaf.size for leaf in jax.tree.leaves(frozen.init(start)))
    self.assertLess(largest, named(start)['backbone/stage1/kernel'].size)

  def test_clipping_takes_all_groups_together_but_those_that_are_frozen(self):
    optimizer = make_optimizer(
      config(
        name='sgd',
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=1.0,
        groups=(('^y', 0.5, 1.0), ('^z', 0.0, 1.0)),
      ),
      optax.constant_schedule(1.0),
    )
    grads = {name: {'bias': jnp.array([x])} for name, x in (('x', 3.0), ('y', 4.0), ('z', 99.0))}
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name, expected in (('x', -0.6), ('y', -0.4), ('z', 0.0)):
      np.testing.assert_allclose(updates[name]['bias'], [expected], atol=1e-6)

  def test_without_groups_the_state_is_the_rules_own(self):
    start = parameters()
    rule = optax.adamw(falling, mask=lambda tree: jax.tree.map(lambda _: True, tree))
    rule = optax.chain(optax.clip_by_global_norm(1.0), rule)
    state = make_optimizer(config(name='adamw', clip_norm=1.0), falling).init(start)
    self.assertEqual(jax.tree.structure(state), jax.tree.structure(rule.init(start)))

  def test_a_state_with_groups_survives_a_checkpoint(self):
    groups = (('^backbone/stage1', 0.0, 1.0), ('^head', 10.0, 1.0))
    optimizer = make_optimizer(config(clip_norm=1.0, groups=groups), falling)
    start, facts = parameters(), {'model': 'any'}
    _, state = optimizer.update(start, optimizer.init(start), start)
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    with Checkpoints(folder, keep_last=1) as saved:
      saved.save(1, {'opt_state': state}, facts, None)
    with Checkpoints(folder, keep_last=1) as saved:
      restored = saved.restore(1, {'opt_state': optimizer.init(start)}, facts)['opt_state']
    self.assertEqual(jax.tree.structure(restored), jax.tree.structure(state))
    self.assertGreater(max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state)), 0)
    jax.tree.map(np.testing.assert_array_equal, restored, state)

  @parameterized.parameters('^(?!backbone/)', '^backbone/(conv1|norm1|layer[12]_)', 'depthwise')
  def test_the_documented_patterns_are_found_and_others_are_the_users_error(self, pattern):
    model = DeepLabV3Plus(num_classes=2, backbone='resnet18', backbone_width=1 / 16, features=4)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
    jax.eval_shape(make_optimizer(config(groups=((pattern, 0.0, 0.0),)), falling).init, params)
    nowhere = f'{pattern}.*nowhere'
    optimizer = make_optimizer(config(groups=((pattern, 0.0, 0.0), (nowhere, 1.0, 1.0))), falling)
    with self.assertRaisesRegex(UserError, f'optimizer.groups: {re.escape(repr(nowhere))} is'):
      jax.eval_shape(optimizer.init, params)

  def test_an_unknown_name_is_the_users_error(self):
    with self.assertRaisesRegex(UserError, "optimizer.name is 'adam'; did you mean 'adamw'"):
      make_optimizer(config(name='adam'), optax.constant_schedule(1.0))


if __name__ == '__main__':
  absltest.main()
