import json
import math
import random
import tempfile
from pathlib import Path

from absl.testing import absltest, parameterized

from configs import common, unet
from seg_jax import settings
from seg_jax.errors import UserError
from tests.configs_test import CONFIGS


class SettingsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_what_is_written_is_what_is_read(self):
    config = unet.get_config('camvid')
    settings.for_training(config, self.folder)
    self.assertEqual(settings.read(self.folder / 'config.json'), config.to_dict())
    again = settings.for_inference(unet.get_config('shapes'), {}, self.folder)
    self.assertEqual(again.to_dict(), config.to_dict())

  def test_overrides_win_over_what_the_run_was_trained_with(self):
    settings.for_training(unet.get_config(), self.folder)
    config = settings.for_inference(unet.get_config(), {'eval.splits': 'test'}, self.folder)
    self.assertEqual(config.eval.splits, 'test')

  def test_a_workdir_does_not_say_what_the_machine_is(self):
    config = unet.get_config()
    config.update_from_flattened_dict({'parallel': 'pmap', 'mesh.data': 8, 'distributed': True})
    settings.for_training(config, self.folder)
    again = settings.for_inference(unet.get_config(), {}, self.folder)
    self.assertEqual(again.to_dict(), unet.get_config().to_dict())

  def test_a_workdir_takes_the_same_config_again_and_whatever_changes_no_parameter(self):
    settings.for_training(unet.get_config(), self.folder)
    (self.folder / 'checkpoints' / '20').mkdir(parents=True)
    for key in ('data.num_workers', 'train.log_every', 'eval.batch_size'):
      config = unet.get_config()
      config.update_from_flattened_dict({key: 7})
      settings.for_training(config, self.folder)
      settings.for_training(unet.get_config(), self.folder)

  def test_a_workdir_of_another_run_is_refused_with_every_difference(self):
    settings.for_training(unet.get_config(), self.folder)
    (self.folder / 'checkpoints' / '20').mkdir(parents=True)
    before = (self.folder / 'config.json').read_bytes()
    config = unet.get_config()
    config.model.width, config.seed = 17, 5
    message = r'model.width is 16 there and 17 here; seed is 0 there and 5 here'
    with self.assertRaisesRegex(UserError, message):
      settings.for_training(config, self.folder)
    self.assertEqual((self.folder / 'config.json').read_bytes(), before)

  def test_a_workdir_without_checkpoints_takes_another_config(self):
    settings.for_training(unet.get_config(), self.folder)
    config = unet.get_config()
    config.seed = 5
    settings.for_training(config, self.folder)
    self.assertEqual(settings.read(self.folder / 'config.json')['seed'], 5)

  @parameterized.parameters(
    ('optimizer.step_boundaries', (300,), 'growing shares of train.num_steps'),
    ('data.std', (0.0, 0.0, 0.0), r'numbers in \(0, 1\]'),
    ('data.std', (0.1, 0.2), r'data.std is \(0.1, 0.2\); expected 3 numbers \(data.channels\)'),
    ('data.mean', (), 'data.mean .* expected 3 numbers'),
    ('data.mean', (0.5, 0.5, 'a'), r'numbers in \[0, 1\]'),
    ('data.channels', 5, r'data.mean .* expected 5 numbers \(data.channels\)'),
    ('data.bits', 12, '8 or 16'),
    ('seed', 2**64, 'whole number from 0'),
    ('eval.checkpoint', 'bst', 'best or last'),
    ('train.num_steps', 0, 'whole number above 0'),
    ('optimizer.learning_rate', math.nan, 'number of 0 or more'),
    ('data.scale_range', (2.0, 0.5), 'low <= high'),
    ('data.crop_size', (96, 96, 3), r'pair of whole numbers'),
    ('data.crop_size', ('a', 'b'), r'pair of whole numbers'),
    ('optimizer.ema_decay', 1.0, 'from 0 to below 1'),
    ('parallel', 'threads', "expected 'jit' or 'pmap'"),
    ('mesh.space', 0, 'whole number above 0, or -1'),
    ('train.steps_per_call', 7, 'train.num_steps is 900; expected a multiple of .* 7'),
    ('train.accumulation', 3, 'no multiple of train.accumulation'),
    ('optimizer.groups', (('(', 1.0, 1.0),), 'tuple of .regular expression'),
    ('optimizer.groups', (('head', -1.0, 1.0),), 'tuple of .regular expression'),
    ('optimizer.groups', ('head', 1.0, 1.0), 'tuple of .regular expression'),
    ('optimizer.groups', (('head', 1.0),), 'tuple of .regular expression'),
    ('data.max_instances', 0, 'whole number above 0'),
    ('data.extras', ('depth', 'normals'), "tuple of 'instances' and 'depth', or \\(\\)"),
    ('data.extras', ('instance',), "tuple of 'instances' and 'depth'"),
    ('inference.crf', 'latice', "inference.crf is 'latice'; did you mean 'lattice'"),
    ('inference.threshold', 1.0, 'number between 0 and 1'),
    ('inference.smoothing', 1.0, 'from 0 to below 1'),
    ('inference.feather', -0.5, 'number of pixels, or -1'),
    ('inference.blur', 0.0, 'number above 0'),
    ('inference.paint', 'red', "paint is 'red'; expected inference.repaint with it"),
    ('inference.repaint', 'shirt', "repaint is 'shirt'; expected inference.paint with it"),
    ('inference.foreground', 'cat', "foreground is 'cat'; expected inference.background with it"),
  )
  def test_a_value_that_no_run_can_work_with(self, key, value, message):
    config = unet.get_config()
    config.update_from_flattened_dict({key: value})
    with self.assertRaisesRegex(UserError, message):
      settings.check(config)

  @parameterized.parameters((), ('instances',), ('depth', 'instances'))
  def test_extras_are_none_one_or_both_and_come_back_as_they_were(self, *extras):
    config = unet.get_config()
    config.data.extras = extras
    settings.for_training(config, self.folder)
    again = settings.for_inference(unet.get_config(), {}, self.folder)
    self.assertEqual(again.data.extras, extras)

  @parameterized.parameters(
    ('data.variant', 'v2.0'), ('data.extras', ('depth',)), ('data.max_instances', 7)
  )
  def test_what_changes_the_records_makes_another_run(self, key, value):
    settings.for_training(unet.get_config(), self.folder)
    (self.folder / 'checkpoints' / '20').mkdir(parents=True)
    config = unet.get_config()
    config.update_from_flattened_dict({key: value})
    with self.assertRaisesRegex(UserError, f'{key} is .* there and .* here'):
      settings.for_training(config, self.folder)

  def test_every_key_that_is_checked_or_free_exists(self):
    known = {
      key for get_config in CONFIGS.values() for key in settings.flat(get_config().to_dict())
    }
    for _, _, keys in settings.CHECKS:
      self.assertContainsSubset(keys.split(), known)
    for key in settings.FREE:
      self.assertTrue(any(name.startswith(key) for name in known), key)

  def test_a_mutated_config_is_read_or_refused_never_worse(self):
    settings.for_training(unet.get_config(), self.folder)
    path = self.folder / 'config.json'
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
      data = bytearray(whole)
      for _ in range(rng.randrange(1, 4)):
        kind, at = rng.randrange(3), rng.randrange(len(data))
        if kind == 0:
          data[at] = rng.randrange(256)
        elif kind == 1:
          del data[at : at + rng.randrange(1, 30)]
        else:
          data[at:at] = rng.choice((b'null', b'[]', b'-1', b'"x"', b'{', b'1e999'))
      path.write_bytes(data)
      try:
        settings.for_inference(unet.get_config(), {}, self.folder)
      except UserError as error:
        refused += 1
        self.assertNotIn('\n', str(error))
    self.assertGreater(refused, 100)

  def test_the_schema_is_plain_json(self):
    json.dumps(common.get_config().to_dict(), allow_nan=False)


if __name__ == '__main__':
  absltest.main()
