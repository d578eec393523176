import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from jax.sharding import SingleDeviceSharding

from seg_jax.errors import UserError
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.step import TrainState
from seg_jax.training.transfer import start_from
from tests.training import loop_test, tiny

FACTS = {'model': 'fcn', 'classes': ['a', 'b']}


def state(value, *, ema=None, **shapes):
  """Arrays of `value` under params/NAME/kernel and its batch statistics; a step has been done."""
  params, stats = (
    {name: {leaf: jnp.full(shape, value)} for name, shape in shapes.items()}
    for leaf in ('kernel', 'mean')
  )
  averaged = {} if ema is None else jax.tree.map(lambda x: jnp.full_like(x, ema), params)
  optimizer = jax.tree.map(lambda x: jnp.full_like(x, value), optax.adam(0.1).init(params))
  tree = TrainState(jnp.int32(1), params, {'batch_stats': stats}, optimizer, averaged)
  return jax.device_put(tree, SingleDeviceSharding(jax.devices()[0]))


class StartFromTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, scores, **fields):
    """Checkpoints of the steps in `scores`, filled with the step's number."""
    with Checkpoints(self.folder, keep_last=2) as saved:
      for step, score in scores.items():
        saved.save(step, state(float(step), **fields), FACTS, score)

  def start(self, fresh, classes=('a', 'b')):
    with contextlib.redirect_stdout(io.StringIO()) as told:
      started = start_from(fresh, self.folder, classes)
    return started, told.getvalue()

  def test_takes_what_fits_and_tells_the_rest(self):
    self.save({5: 0.5}, trunk=(3, 4), head=(4, 2), old=(1,))
    fresh = state(0.0, trunk=(3, 4), head=(4, 3), new=(7,))
    started, told = self.start(fresh)
    for tree, leaf in ((started.params, 'kernel'), (started.model_state['batch_stats'], 'mean')):
      for name, value in {'trunk': 5, 'head': 0, 'new': 0}.items():
        expected = jax.tree.leaves(fresh.params[name])[0].shape
        np.testing.assert_array_equal(tree[name][leaf], np.full(expected, value), name)
    self.assertEqual(jax.tree.structure(started), jax.tree.structure(fresh))
    self.assertRegex(told, 'step 5 of .*: 2 of 6 arrays taken')
    self.assertIn('new here: batch_stats/new/mean, params/new/kernel\n', told)
    self.assertIn('params/head/kernel (4, 2) there, (4, 3) here\n', told)
    self.assertIn('not needed: batch_stats/old/mean, params/old/kernel\n', told)

  def test_takes_the_best_step_and_neither_its_number_nor_its_optimizer(self):
    self.save({5: 0.9, 6: 0.1, 7: None}, trunk=(2,))
    fresh = state(0.0, trunk=(2,)).replace(step=jnp.int32(0))
    started, _ = self.start(fresh)
    np.testing.assert_array_equal(started.params['trunk']['kernel'], [5, 5])
    self.assertEqual(started.step, 0)
    np.testing.assert_array_equal(started.opt_state[0].mu['trunk']['kernel'], [0, 0])
    self.assertEqual(started.ema_params, {})

  def test_tells_that_the_classes_were_others(self):
    self.save({5: 0.5}, head=(4, 2))
    fresh = state(0.0, head=(4, 2))
    self.assertNotIn('classes', self.start(fresh)[1])
    self.assertIn('classes are others: a, b\n', self.start(fresh, ('b', 'a'))[1])

  def test_a_save_that_was_cut_short_is_no_checkpoint(self):
    (self.folder / 'checkpoints' / '5.orbax-checkpoint-tmp').mkdir(parents=True)
    with self.assertRaisesRegex(UserError, 'holds no whole checkpoint'):
      self.start(state(0.0, trunk=(2,)))

  def test_takes_averaged_weights_where_there_are_any_and_averages_from_what_it_took(self):
    self.save({5: 0.9}, ema=8.0, trunk=(2,))
    started, _ = self.start(state(0.0, ema=0.0, trunk=(2,), new=(1,)))
    for params in (started.params, started.ema_params):
      np.testing.assert_array_equal(params['trunk']['kernel'], [8, 8])
      np.testing.assert_array_equal(params['new']['kernel'], [0])
    # A step gives the memory of its state away, so no array may be in it twice.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(started)]
    self.assertLen(set(pointers), len(pointers))

  def test_no_checkpoint_and_nothing_that_fits_are_the_users_errors(self):
    with self.assertRaisesRegex(UserError, 'train.init_from is .*, which holds no checkpoint'):
      start_from(state(0.0, trunk=(2,)), self.folder, ())
    self.save({5: 0.9}, trunk=(2,), other=(1,))
    with self.assertRaisesRegex(UserError, 'no array of .*, a fcn, fits'):
      start_from(state(0.0, trunk=(3,), new=(1,)), self.folder, ())


class RunTest(absltest.TestCase):
  @pytest.mark.slow
  def test_a_run_starts_there_once_and_resumes_bit_for_bit_without_it(self):
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    source = folder / 'source'
    loop_test.train(source, tiny.config(optimizer__ema_decay=0.9))
    fields = {'model__depth': 2, 'train__num_steps': 3}
    config = tiny.config(train__init_from=str(source), **fields)
    with contextlib.redirect_stdout(io.StringIO()) as told:
      loop_test.train(folder / 'whole', config)
      loop_test.train_and_stop(folder / 'parts', config, at=1)
    self.assertEqual(told.getvalue().count('arrays taken'), 2)
    self.assertIn('new here: batch_stats/down1_norm1/mean', told.getvalue())
    shutil.rmtree(source)
    loop_test.train(folder / 'parts', config)
    loop_test.compare(
      self, loop_test.outcome(folder / 'whole'), loop_test.outcome(folder / 'parts')
    )
    loop_test.train(folder / 'scratch', tiny.config(**fields))
    scratch, whole = (loop_test.outcome(folder / name)[2][0] for name in ('scratch', 'whole'))
    self.assertNotEqual(scratch['loss'], whole['loss'])


if __name__ == '__main__':
  absltest.main()
