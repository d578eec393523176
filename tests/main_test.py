"""The command line: what it refuses, in one line each, and a whole run on a user's own folder."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

import main
from seg_jax import runtime
from seg_jax.data.datasets import open_dataset
from seg_jax.training import loop
from tests.training import tiny

ROOT = Path(main.__file__).parent


def make_folder(root, count=6, size=(24, 20)):
  """A dataset of two classes: a bright rectangle on a dark ground."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks', 'splits'):
    (root / name).mkdir(parents=True)
  (root / 'classes.txt').write_text('ground\nthing\n')
  for i in range(count):
    label = np.zeros(size, np.uint8)
    label[4 : 10 + i, 5:15] = 1
    image = (60 + 120 * label[..., None] + rng.integers(0, 50, (*size, 3))).astype(np.uint8)
    Image.fromarray(image).save(root / 'images' / f'{i}.png')
    Image.fromarray(label).save(root / 'masks' / f'{i}.png')
  (root / 'splits' / 'train.txt').write_text('0\n1\n2\n3\n')
  (root / 'splits' / 'val.txt').write_text('4\n5\n')
  return root


def folder_config(root, **overrides):
  return tiny.config(data__name='folder', data__dir=str(root), **overrides)


def no_mask(root):
  (root / 'masks' / '2.png').unlink()
  return r'images/2\.png: has no mask; expected .*masks/2\.png'


def other_size(root):
  Image.new('L', (20, 23)).save(root / 'masks' / '1.png')
  return r'images/1\.png has 24 x 20 .*masks/1\.png 23 x 20; expected the same size'


def truncated(root):
  path = root / 'images' / '3.png'
  path.write_bytes(path.read_bytes()[:-200])
  return r'images/3\.png: cannot be read'


def unknown_value(root):
  Image.fromarray(np.full((24, 20), 7, np.uint8)).save(root / 'masks' / '0.png')
  return r'masks/0\.png: value 7 \(480 pixels\) not known; expected 0 to 1 or 255'


def unknown_colour(root):
  (root / 'classes.txt').write_text('ground, 0, 0, 0\nthing, 9, 9, 9\n')
  for i in range(6):
    Image.new('RGB', (20, 24), (0, 0, 8)).save(root / 'masks' / f'{i}.png')
  return r'masks/\d\.png: colour 0,0,8 \(480 pixels\) not known'


def jpeg_mask(root):
  (root / 'masks' / '0.png').unlink()
  Image.new('L', (20, 24)).save(root / 'masks' / '0.jpg')
  return r'masks/0\.jpg: a JPEG mask'


def empty_split(root):
  (root / 'splits' / 'val.txt').write_text('\n')
  return r"split 'val' of .* is empty"


def no_directory(root):
  root.rename(root.with_name('elsewhere'))
  return r'data.dir: there is no directory'


class CommandLineTest(parameterized.TestCase):
  @parameterized.parameters(
    (['--config.trian.num_steps=3'], "unknown config key 'trian.num_steps'; did you mean"),
    (['--config.train.num_steps=many'], 'config.train.num_steps=many'),
    (['--config.data.batch_size=0'], 'data.batch_size is 0; expected a whole number above 0'),
    (['--config.data.crop_size=(96,)'], r'data.crop_size is \(96,\); expected a pair'),
    (['--config.optimizer.name=sdg'], "optimizer.name is 'sdg'; did you mean 'sgd'"),
    (['--config.data.name=shape'], "no dataset 'shape'; did you mean 'shapes'"),
    (['--config=configs/unett.py'], 'configs/unett.py: no such file'),
    (['--mode=trian'], 'mode=trian'),
    (['photo.jpg'], "'photo.jpg' is not expected"),
    (['--config', 'configs/unett.py'], 'configs/unett.py: no such file'),
    (['--workdir=README.md'], 'workdir=README.md cannot be written to'),
    (['--mode=eval', '--workdir=nowhere'], 'nowhere/config.json is missing; train first'),
    (['--mode=export', '--format=pth'], 'format=pth'),
    (['--output=a.safetensors'], 'output=a.safetensors is not expected; only --mode=export'),
  )
  def test_what_is_wrong_is_one_line_and_exit_2(self, arguments, message):
    with tempfile.TemporaryDirectory() as folder:
      run = subprocess.run(
        [sys.executable, ROOT / 'main.py', f'--workdir={folder}', *arguments],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=120,
      )
    self.assertEqual(run.returncode, 2, run.stderr)
    self.assertRegex(run.stderr, f'^error: .*{message}[^\n]*\n$')

  def test_exit_codes(self):
    def fails(error):
      def main(argv):
        raise error

      return runtime.exits(main)

    for error, code in ((runtime.UserError('a\nb'), 2), (runtime.RunError('a\nb'), 1)):
      with contextlib.redirect_stderr(io.StringIO()) as told, self.assertRaises(SystemExit) as out:
        fails(error)([])
      self.assertEqual(out.exception.code, code)
      self.assertEqual(told.getvalue().count('\n'), 1)


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data = make_folder(self.folder / 'data')

  @parameterized.parameters(
    no_mask,
    other_size,
    truncated,
    unknown_value,
    unknown_colour,
    jpeg_mask,
    empty_split,
    no_directory,
  )
  def test_bad_data_is_told_by_name_and_leaves_no_checkpoint(self, spoil):
    message = spoil(self.data)
    with self.assertRaisesRegex(runtime.UserError, message) as caught:
      main.run(folder_config(self.data), self.folder / 'run', 'train', {}, [])
    self.assertNotIn('\n', str(caught.exception))
    self.assertEmpty(list((self.folder / 'run').glob('checkpoints/*')))

  def test_inspect_train_evaluate_and_predict(self):
    workdir, config = self.folder / 'run', folder_config(self.data, eval__batch_size=2)
    main.run(config, workdir, 'inspect', {}, [])
    report = json.loads((workdir / 'inspect' / 'train.json').read_text())
    self.assertEqual(sum(report['raw_values'].values()), 4 * 24 * 20)
    self.assertEqual(report['raw_values']['1'], report['classes']['thing']['pixels'])
    main.run(config, workdir, 'train', {}, [])
    main.run(config, workdir, 'eval', {}, [])
    odd = self.folder / 'odd one.jpg'
    Image.new('RGB', (37, 53), (200, 100, 0)).save(odd)
    main.run(config, workdir, 'predict', {}, [str(self.data / 'images'), str(odd)])
    for name in ('inspect/train.png', 'eval/val.json', 'eval/val.png'):
      self.assertTrue((workdir / name).exists(), name)
    labels, overlays = workdir / 'predict' / 'labels', workdir / 'predict' / 'overlays'
    self.assertLen(list(labels.rglob('*.png')), 7)
    label, overlay = (Image.open(folder / 'odd one.png') for folder in (labels, overlays))
    self.assertEqual((label.mode, label.size), ('P', (37, 53)))
    self.assertEqual((overlay.mode, overlay.size), ('RGB', (37, 53)))
    # What is written is what the evaluation counted: the confusion of the two pictures of val.
    scores = json.loads((workdir / 'eval' / 'val.json').read_text())
    guesses, truths = (
      np.stack([np.asarray(Image.open(folder / f'{i}.png')) for i in (4, 5)])
      for folder in (labels / 'data' / 'images', self.data / 'masks')
    )
    self.assertAlmostEqual(scores['pixel_accuracy'], np.mean(guesses == truths))

  @pytest.mark.slow
  def test_what_is_prepared_trains_to_the_same_scores(self):
    config, scores = folder_config(self.data), []
    main.run(config, self.folder / 'folder', 'prepare', {}, [])
    prepared = self.folder / 'folder' / 'prepared'
    for name, root in (('folder', self.data), ('tfds', prepared)):
      config.data.update({'name': name, 'dir': str(root)})
      main.run(config, self.folder / name, 'train', {}, [])
      scores.append((self.folder / name / 'eval' / 'val.json').read_text())
    self.assertEqual(*scores)

  def test_a_mistake_does_not_lock_the_workdir(self):
    workdir = self.folder / 'run'
    with self.assertRaisesRegex(runtime.UserError, "did you mean 'sgd'"):
      main.run(folder_config(self.data, optimizer__name='sdg'), workdir, 'train', {}, [])
    main.run(folder_config(self.data, optimizer__name='sgd'), workdir, 'train', {}, [])

  def test_a_split_that_is_judged_last_is_missed_first(self):
    config = folder_config(self.data, eval__splits='val,test')
    with self.assertRaisesRegex(runtime.UserError, "no split 'test'; expected one of train, val"):
      main.run(config, self.folder / 'run', 'train', {}, [])

  def test_a_run_goes_on_with_the_same_pictures_only(self):
    workdir = self.folder / 'run'
    main.run(folder_config(self.data), workdir, 'train', {}, [])
    (self.data / 'splits' / 'train.txt').write_text('0\n1\n2\n')
    with self.assertRaisesRegex(runtime.UserError, 'pictures FileSource.*4 records.*3 records'):
      main.run(folder_config(self.data), workdir, 'train', {}, [])

  @parameterized.parameters('median_frequency', 'enet')
  def test_class_weights_are_counted_from_the_training_split(self, name):
    source = open_dataset(folder_config(self.data).data, 'train', 0)
    things = sum(int((source[i]['label'] == 1).sum()) for i in range(4))
    pixels = np.array([4 * 24 * 20 - things, things])
    frequency = pixels / pixels.sum()
    expected = {
      'median_frequency': np.median(frequency) / frequency,
      'enet': 1 / np.log(1.02 + frequency),
    }[name]
    with mock.patch.object(loop, 'build_task', wraps=loop.build_task) as build:
      config = folder_config(self.data, loss__class_weights=name)
      main.run(config, self.folder / 'run', 'train', {}, [])
    np.testing.assert_allclose(build.call_args_list[0].args[2], expected, rtol=1e-5)

  def test_a_checkpoint_of_other_classes_is_refused(self):
    workdir = self.folder / 'run'
    main.run(folder_config(self.data), workdir, 'train', {}, [])
    (self.data / 'classes.txt').write_text('ground\nthing\nmore\n')
    with self.assertRaisesRegex(runtime.UserError, r"classes \['ground', 'thing'\] there"):
      main.run(folder_config(self.data), workdir, 'eval', {}, [])


if __name__ == '__main__':
  absltest.main()
