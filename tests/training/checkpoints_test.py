import collections
import os
import random
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.errors import UserError
from seg_jax.training.checkpoints import Checkpoints

FACTS = {'model': 'unet', 'dataset': 'd', 'classes': ['a', 'b'], 'palette': [[0, 0, 0], [9, 9, 9]]}


def state(scale=1.0, shape=(3, 4)):
  return {'step': jnp.int32(7), 'params': {'kernel': scale * jnp.ones(shape), 'bias': jnp.ones(2)}}


class CheckpointsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def save(self, scores, keep_last=2):
    with Checkpoints(self.folder, keep_last) as saved:
      for step, score in scores.items():
        saved.save(step, state(step), FACTS, score)

  def steps(self):
    return sorted(int(path.name) for path in (self.folder / 'checkpoints').glob('[0-9]*'))

  def test_the_last_ones_and_the_best_are_kept(self):
    self.save({1: 0.5, 2: 0.9, 3: 0.1, 4: None, 5: 0.2})
    self.assertEqual(self.steps(), [2, 4, 5])
    with Checkpoints(self.folder, 2) as saved:
      self.assertEqual(saved.find('best'), 2)
      self.assertEqual(saved.find('last'), 5)
      self.assertEqual(saved.find('4'), 4)
      restored = saved.restore(2, state(), FACTS)
      np.testing.assert_array_equal(restored['params']['kernel'], 2 * np.ones((3, 4)))
      with self.assertRaisesRegex(UserError, r"eval.checkpoint is '3'.*2, 4, 5"):
        saved.find('3')

  def test_a_step_that_is_no_longer_kept_is_never_seen_half_deleted(self):
    unlink, seen = os.unlink, collections.defaultdict(set)

    def spy(*args, **kwargs):
      unlink(*args, **kwargs)
      for path in (self.folder / 'checkpoints').glob('[0-9]*'):
        if path.name.isdigit():  # and not the temporary name of a save under way
          seen[path.name].add(frozenset(file.relative_to(path) for file in path.rglob('*')))

    with mock.patch.object(os, 'unlink', spy):
      self.save(dict.fromkeys(range(1, 6), 0.5), keep_last=1)
    self.assertNotEmpty(seen)
    self.assertEqual(
      {step: len(listings) for step, listings in seen.items()}, dict.fromkeys(seen, 1)
    )
    self.assertEmpty(list((self.folder / 'checkpoints' / 'discarded').glob('*')))

  def test_the_best_of_an_earlier_start_is_kept(self):
    self.save({1: 0.5, 2: 0.9, 3: 0.1})
    self.save({4: 0.2, 5: 0.3, 6: 0.4})
    self.assertEqual(self.steps(), [2, 5, 6])

  def test_without_any_score_the_best_is_the_last(self):
    self.save({1: None, 2: None})
    with Checkpoints(self.folder, 2) as saved:
      self.assertEqual(saved.find('best'), 2)

  def test_a_score_that_is_unknown_is_never_best(self):
    self.save({1: 0.3, 2: None})
    with Checkpoints(self.folder, 2) as saved:
      self.assertEqual(saved.find('best'), 1)

  def test_what_a_killed_save_left_is_passed_over(self):
    self.save({1: None})
    torn = self.folder / 'checkpoints' / '2.orbax-checkpoint-tmp'
    shutil.copytree(self.folder / 'checkpoints' / '1', torn)
    with Checkpoints(self.folder, 2) as saved:
      self.assertEqual(saved.find('last'), 1)
      np.testing.assert_array_equal(saved.restore(1, state(), FACTS)['step'], 7)

  @parameterized.parameters(
    ({'model': 'fcn'}, {}, 'model unet there, but fcn here'),
    ({'classes': ['a', 'b', 'c']}, {}, r"classes \['a', 'b'\] there"),
    ({}, {'shape': (3, 5)}, r'params/kernel is \(3, 4\) there, but \(3, 5\) here'),
  )
  def test_another_model_or_other_classes_are_told(self, facts, fields, message):
    self.save({1: None})
    with Checkpoints(self.folder, 2) as saved, self.assertRaisesRegex(UserError, message):
      saved.restore(1, state(**fields), FACTS | facts)

  def test_a_parameter_too_many_is_named(self):
    self.save({1: None})
    like = state()
    like['params']['more'] = jnp.ones(1)
    with (
      Checkpoints(self.folder, 2) as saved,
      self.assertRaisesRegex(UserError, r'params/more is missing there, but \(1,\) here'),
    ):
      saved.restore(1, like, FACTS)

  def test_damage_is_the_clear_error_or_leaves_the_values_alone(self):
    self.save({1: 0.5})
    whole = self.folder / 'whole'
    shutil.move(self.folder / 'checkpoints', whole)
    rng = random.Random(0)
    damaged = 0
    for _ in range(60):
      shutil.rmtree(self.folder / 'checkpoints', ignore_errors=True)
      shutil.copytree(whole, self.folder / 'checkpoints')
      files = sorted(p for p in (self.folder / 'checkpoints' / '1').rglob('*') if p.is_file())
      victim = rng.choice(files)
      data = bytearray(victim.read_bytes())
      kind = rng.choice(('cut', 'flip', 'remove', 'empty'))
      if kind == 'remove':
        victim.unlink()
      elif kind == 'flip' and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
      else:
        victim.write_bytes(data[: rng.randrange(len(data))] if kind == 'cut' and data else b'')
      try:
        with Checkpoints(self.folder, 2) as saved:
          step = saved.find(rng.choice(('last', 'best')))
          if step is not None:
            restored = saved.restore(step, state(), FACTS)
            jax.tree.map(np.testing.assert_array_equal, restored, state())
      except UserError as error:
        damaged += 1
        self.assertIn(str(self.folder / 'checkpoints'), str(error))
        self.assertNotIn('\n', str(error))
    self.assertGreater(damaged, 5)


if __name__ == '__main__':
  absltest.main()
