import contextlib
import io
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from configs import unet
from seg_jax.data.datasets.shapes import INFO
from seg_jax.tasks import build_task
from seg_jax.training.step import in_calls, init_state, make_step, recomputing

RATE = 0.1


def small_task(norm='none', class_weights=None):
  config = unet.get_config()
  config.model.update({'width': 2, 'depth': 1, 'norm': norm})
  config.loss.dice = 0.0  # it is no mean over pixels
  return build_task(config, INFO, class_weights)


def random_batch(n=4, size=8):
  rng = np.random.default_rng(0)
  label = rng.integers(0, 7, (n, size, size)).astype(np.int32)
  label[0, :6] = 255  # the parts of the batch have different numbers of labelled pixels
  image = rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
  return jax.tree.map(jnp.asarray, {'image': image, 'label': label, 'valid': np.ones(n, bool)})


def run(task, batch, steps=1, ema_decay=0.0, accumulation=1):
  optimizer, schedule = optax.sgd(RATE), optax.constant_schedule(RATE)
  key = jax.random.key(0)
  step = jax.jit(
    make_step(task, optimizer, schedule, accumulation=accumulation, ema_decay=ema_decay)
  )
  states = [jax.jit(lambda key: init_state(task, optimizer, ema_decay, key, batch))(key)]
  for _ in range(steps):
    state, logs = step(states[-1], batch, key)
    states.append(state)
  return states, logs


class StepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it

  @parameterized.parameters((None,), (np.arange(1, 8, dtype=np.float32),))
  def test_accumulated_parts_give_the_whole_batchs_step(self, class_weights):
    task, batch = small_task(class_weights=class_weights), random_batch()
    (_, whole), whole_logs = run(task, batch)
    (_, parts), parts_logs = run(task, batch, accumulation=2)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, parts.params
    )
    self.assertAlmostEqual(float(whole_logs['loss']), float(parts_logs['loss']), places=5)

  @parameterized.parameters('cpu', 'tpu')
  def test_several_steps_in_a_call_are_those_of_one_each(self, backend):
    """Unrolled on a CPU, in a loop elsewhere."""
    task, batch, key = small_task(norm='batch'), random_batch(), jax.random.key(0)
    step = make_step(task, optax.sgd(RATE), optax.constant_schedule(RATE))
    (*_, expected), logs = run(task, batch, steps=3)
    with mock.patch.object(jax, 'default_backend', lambda: backend):
      steps = in_calls(step, 3)
    state = init_state(task, optax.sgd(RATE), 0.0, key, batch)
    batches = jax.tree.map(lambda x: jnp.stack([x] * 3), batch)
    traced = jax.jit(steps).trace(state, batches, key)
    loops = [equation for equation in traced.jaxpr.eqns if equation.primitive.name == 'scan']
    self.assertLen(loops, 0 if backend == 'cpu' else 1)
    state, several = jax.jit(steps)(state, batches, key)
    self.assertEqual(several['loss'].shape, (3,))
    self.assertAlmostEqual(float(several['loss'][2]), float(logs['loss']), places=5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected.params, state.params
    )

  def test_what_is_recomputed_is_not_kept(self):
    """Of maps only what convolutions gave; without it four times as many."""
    task, batch, key = small_task(norm='batch'), random_batch(), jax.random.key(0)
    state = init_state(task, optax.sgd(RATE), 0.0, key, batch)

    def loss(params):
      return task.loss({'params': params} | state.model_state, batch, key, train=True)[0]

    def maps(function):
      printed = io.StringIO()
      with contextlib.redirect_stdout(printed):
        jax.ad_checkpoint.print_saved_residuals(function, state.params)
      lines = printed.getvalue().splitlines()
      return [line for line in lines if re.match(r'\w+\[4,\d+,\d+,\d+\] (?!from)', line)]

    kept = maps(recomputing(loss))
    self.assertLess(3 * len(kept), len(maps(loss)))
    self.assertNotEmpty(kept)
    for line in kept:
      self.assertIn("named 'convolution'", line)

  def test_the_step_recomputes_where_it_is_told_to(self):
    task, batch, key = small_task(norm='batch'), random_batch(), jax.random.key(0)
    state = init_state(task, optax.sgd(RATE), 0.0, key, batch)
    norms = []
    for recompute in (False, True):
      step = make_step(task, optax.sgd(RATE), optax.constant_schedule(RATE), recompute=recompute)
      norms.append(str(jax.make_jaxpr(step)(state, batch, key)).count('rsqrt'))
    self.assertGreaterEqual(norms[1], norms[0] + 6)  # there are six norms

  def test_the_average_of_the_weights_follows_its_formula(self):
    states, _ = run(small_task(), random_batch(), steps=3, ema_decay=0.5)
    kernel = [np.asarray(state.params['head']['kernel']) for state in states]
    expected = kernel[0]
    for step in range(3):
      decay = min(0.5, (1 + step) / (10 + step))
      expected = decay * expected + (1 - decay) * kernel[step + 1]
    np.testing.assert_allclose(
      states[-1].variables['params']['head']['kernel'], expected, atol=1e-6
    )

  def test_a_batch_without_labels_changes_nothing(self):
    task, batch = small_task(), random_batch()
    batch['label'] = jnp.full_like(batch['label'], 255)
    for accumulation in (1, 2):
      (before, after), logs = run(task, batch, accumulation=accumulation)
      self.assertEqual(float(logs['loss']), 0)
      jax.tree.map(np.testing.assert_array_equal, before.params, after.params)

  def test_everything_moves(self):
    (before, after), logs = run(small_task(norm='batch'), random_batch())
    self.assertEqual(int(after.step), 1)
    for collection in ('params', 'model_state'):
      pairs = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), getattr(before, collection), getattr(after, collection)
      )
      self.assertTrue(jax.tree.all(pairs), collection)
    self.assertGreater(float(logs['gradient_norm']), 0)
    self.assertAlmostEqual(float(logs['learning_rate']), RATE, places=6)


if __name__ == '__main__':
  absltest.main()
