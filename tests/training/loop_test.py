import json
import signal
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized

from seg_jax import settings
from seg_jax.errors import RunError, UserError
from seg_jax.training import checkpoints, loop, summary
from seg_jax.training.logs import Recorder, read_metrics
from seg_jax.training.mesh import make_mesh
from tests.training import tiny

TOOK = Recorder.took


def train(workdir, config):
  loop.train(settings.for_training(config, workdir), workdir)


def train_and_stop(workdir, config, at):
  def took(recorder, step, *rest):
    TOOK(recorder, step, *rest)
    if step == at:
      signal.raise_signal(signal.SIGTERM)

  with mock.patch.object(Recorder, 'took', took):
    train(workdir, config)


def outcome(workdir):
  """Every array of the last checkpoint, and every logged number that is no speed."""
  steps = sorted(int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*'))
  state = ocp.StandardCheckpointer().restore(workdir / 'checkpoints' / str(steps[-1]) / 'state')
  leaves = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  speeds = ('images_per_second', 'data_wait_fraction')
  lines = [{k: v for k, v in line.items() if k not in speeds} for line in read_metrics(workdir)]
  return steps[-1], leaves, lines


def compare(test, expected, actual):
  """Two outcomes, bit for bit."""
  test.assertEqual(expected[0], actual[0])
  test.assertEqual(expected[1].keys(), actual[1].keys())
  for name, leaf in expected[1].items():
    np.testing.assert_array_equal(leaf, actual[1][name], name)
  test.assertEqual(expected[2], actual[2])


class LoopTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_a_finished_run_leaves_what_the_readme_says(self):
    train(self.folder, tiny.config())
    self.assertNotEmpty(list((self.folder / 'tensorboard').glob('events*')))
    for name in ('config.json', 'metrics.jsonl', 'curves.png'):
      self.assertTrue((self.folder / name).exists(), name)
    for name in ('val.json', 'val.png', 'confusion_val.png'):
      self.assertTrue((self.folder / 'eval' / name).exists(), name)
    lines = read_metrics(self.folder)
    self.assertEqual([x['step'] for x in lines if x['split'] == 'train'], [1, 2, 3, 4, 5, 6])
    self.assertEqual([x['step'] for x in lines if x['split'] == 'val'], [3, 6])
    for name in ('loss', 'images_per_second', 'data_wait_fraction', 'learning_rate'):
      self.assertIn(name, lines[0])
    report = json.loads((self.folder / 'eval' / 'val.json').read_text())
    self.assertEqual(report['num_images'], 200)
    self.assertIn(report['step'], (3, 6))
    pixels = sum(scores['pixels'] for scores in report['per_class'].values())
    self.assertEqual(pixels, 200 * 16 * 16)
    best = max((x for x in lines if x['split'] == 'val'), key=lambda x: x['miou'])
    self.assertAlmostEqual(report['miou'], best['miou'], places=6)  # the best one is judged

  def test_stop_and_resume_is_the_uninterrupted_run_bit_for_bit(self):
    """Stopped twice, going on with other numbers of worker processes each time."""
    config = tiny.config(optimizer__ema_decay=0.9, model__dropout=0.5)
    train(self.folder / 'whole', config)
    for stop, workers in ((1, 0), (4, 2)):
      config.data.num_workers = workers
      train_and_stop(self.folder / 'parts', config, at=stop)
      self.assertEqual(outcome(self.folder / 'parts')[0], stop)
    config.data.num_workers = 0
    train(self.folder / 'parts', config)
    compare(self, outcome(self.folder / 'whole'), outcome(self.folder / 'parts'))

  @parameterized.parameters('loss', 'gradient_norm')
  def test_what_is_not_finite_stops_the_run_and_names_the_pictures(self, name):
    config = tiny.config(optimizer__schedule='constant', optimizer__clip_norm=0.0)
    train_and_stop(self.folder, config, at=2)

    def poisoned(recorder, step, logs, names):
      TOOK(recorder, step, logs | {name: np.full(1, np.nan)} if step == 5 else logs, names)

    with (
      mock.patch.object(Recorder, 'took', poisoned),
      self.assertRaisesRegex(RunError, rf'{name} of step 5 is nan.*train/\d{{6}}'),
    ):
      train(self.folder, config)
    self.assertEqual(outcome(self.folder)[0], 4)  # the last good one is kept
    self.assertEqual(read_metrics(self.folder)[-1]['step'], 4)

  def test_steps_of_a_call_that_do_not_meet_the_last_ones_are_refused(self):
    train_and_stop(self.folder, tiny.config(), at=1)
    several = {f'train__{name}': 2 for name in ('steps_per_call', 'log_every', 'eval_every')}
    with self.assertRaisesRegex(UserError, 'steps_per_call is 2, but .* from step 1; expected'):
      train(self.folder, tiny.config(**several))

  def test_a_profile_says_which_layers_take_the_time(self):
    train(self.folder, tiny.config(profile=True, train__num_steps=9))
    summary = (self.folder / 'profile' / 'summary.txt').read_text()
    self.assertRegex(
      summary, r'\d+\.\d\d +\d+\.\d%  UNet.*(down|bottom|up)\w*_(conv|norm)\d, backward\n'
    )
    self.assertRegex(summary, r'\d+\.\d\d +\d+\.\d%  conv_general_dilated\n')
    self.assertNotEmpty(list((self.folder / 'profile').rglob('*.xplane.pb')))

  def test_a_run_too_short_for_a_profile_ends_it(self):
    for folder in ('one', 'other'):  # a second trace is refused while one is open
      train(self.folder / folder, tiny.config(profile=True))

  def test_a_workdir_refuses_another_config(self):
    train_and_stop(self.folder, tiny.config(), at=1)
    with self.assertRaisesRegex(UserError, 'data.batch_size is 4 there and 8 here'):
      train(self.folder, tiny.config(data__batch_size=8))
    train_and_stop(self.folder, tiny.config(train__log_every=2, data__num_threads=1), at=2)

  def test_a_full_disk_ends_the_run_with_what_was_saved_before(self):
    save = ocp.CheckpointManager.save

    def full(manager, step, *args, **kwargs):
      if step > 2:
        raise ValueError('RESOURCE_EXHAUSTED: Error writing: No space left on device\nmore')
      return save(manager, step, *args, **kwargs)

    with (
      mock.patch.object(ocp.CheckpointManager, 'save', full),
      self.assertRaisesRegex(RunError, 'nothing more can be saved in .*No space left'),
    ):
      train(self.folder, tiny.config())
    self.assertEqual(outcome(self.folder)[0], 2)

  def test_evaluation_leaves_a_save_under_way_alone(self):
    train(self.folder, tiny.config())
    saving = self.folder / 'checkpoints' / '9.orbax-checkpoint-tmp'
    saving.mkdir()
    config = settings.for_inference(tiny.config(), {}, self.folder)
    checkpoints.load_variables(config, self.folder, make_mesh())
    self.assertTrue(saving.exists())

  def test_a_step_too_large_for_memory_says_what_to_lower(self):
    with (
      mock.patch.object(summary, '_available_bytes', lambda: 1000),
      self.assertRaisesRegex(UserError, 'GiB are free; lower data.batch_size or data.crop_size'),
    ):
      train(self.folder, tiny.config())
    train(self.folder, tiny.config(data__batch_size=2))  # the workdir is not locked

  def test_evaluation_takes_the_run_as_it_was_trained(self):
    train(self.folder, tiny.config())
    # Another width on the command line's defaults does not matter, but as an override it does.
    config = settings.for_inference(tiny.config(model__width=8), {}, self.folder)
    self.assertEqual(config.model.width, 2)
    config = settings.for_inference(tiny.config(), {'model.width': 8}, self.folder)
    with self.assertRaisesRegex(
      UserError, r'of another model: .* is \(4,\) there, but \(16,\) here'
    ):
      checkpoints.load_variables(config, self.folder, make_mesh())


if __name__ == '__main__':
  absltest.main()
