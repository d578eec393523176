import itertools
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data import pipeline, prepare
from seg_jax.data.datasets import open_dataset, shapes
from seg_jax.errors import RunError, UserError

ROOT = Path(__file__).parents[2]

# Kills itself at the nth time that a file gets its name, or that a record is written, for every
# STRIDE-th n until it is done before; then each time prepares again. `whole` was never stopped.
KILLED = """
import os, signal, sys
from pathlib import Path
from seg_jax.data import prepare
from seg_jax.data.datasets import shapes
from tests.data.prepare_test import shapes_config

folder, stride = Path(sys.argv[1]), int(sys.argv[2])
shapes._SPLITS.update(train=5, val=2)
prepare.SHARD_BYTES = 6e3

def run(workdir, owner=None, function='', n=0):
  child = os.fork()
  if child:
    return os.waitpid(child, 0)[1]
  calls = iter(range(n))
  real = getattr(owner, function, None)
  def fatal(*args):
    if next(calls, None) is None:
      os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
  if real:
    setattr(owner, function, fatal)
  prepare.prepare(shapes_config(), workdir)
  os._exit(0)

assert run(folder / 'whole') == 0
for owner, function in ((os, 'replace'), (prepare.tqdm, 'update')):
  for n in range(0, 100, stride):
    workdir = folder / f'{function}-{n}'
    if run(workdir, owner, function, n) == 0:
      break
    assert run(workdir) == 0
  print(function, n, flush=True)
"""


def shapes_config(**changes):
  config = get_config()
  config.data.update(
    {
      'shapes_size': (32, 40),
      'crop_size': (24, 24),
      'batch_size': 4,
      'extras': ('instances', 'depth'),
      **changes,
    }
  )
  return config


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_folder(root):
  """Pictures of all kinds, each with an 8-bit mask, and one more as palette PNG, stored turned."""
  rng = np.random.default_rng(0)
  for name in ('images', 'masks', 'splits'):
    (root / name).mkdir(parents=True)
  (root / 'classes.txt').write_text('ground, 3\nthing, 4\nignore, 0')
  exif = Image.Exif()
  exif[0x0112] = 6
  kinds = {
    'photo.jpg': ('RGB', {}),
    'turned.jpg': ('RGB', {'exif': exif}),
    'grey.jpg': ('L', {}),
    'print.jpg': ('CMYK', {}),
    'colour.png': ('RGB', {}),
    'palette.png': ('P', {}),
    'alpha.png': ('RGBA', {}),
    'old.bmp': ('RGB', {}),
  }
  for name, (mode, options) in kinds.items():
    picture = Image.fromarray(rng.integers(0, 256, (18, 24, 3), np.uint8)).convert(mode)
    if mode == 'RGBA':
      picture.putalpha(Image.fromarray(rng.integers(0, 256, (18, 24), np.uint8)))
    picture.save(root / 'images' / name, **options)
    size = (24, 18) if name == 'turned.jpg' else (18, 24)
    mask = Image.fromarray(rng.choice(np.array([0, 3, 4], np.uint8), size))
    mask.save(root / 'masks' / Path(name).with_suffix('.png'))
  stems = [Path(name).stem for name in kinds]
  (root / 'splits' / 'train.txt').write_text('\n'.join(stems))
  (root / 'splits' / 'val.txt').write_text('\n'.join(stems[:2]))
  config = get_config('folder')
  config.data.dir = str(root)
  return config


class PrepareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.prepared = self.workdir / 'prepared'
    self.enterContext(mock.patch.dict(shapes._SPLITS, {'train': 11, 'val': 3}))
    self.enterContext(mock.patch.object(prepare, 'SHARD_BYTES', 10e3))

  def open(self, config, split, name='tfds', **changes):
    data = config.data.copy_and_resolve_references()
    data.update({'name': name, 'cache_gib': 0.0, **changes})
    if name == 'tfds':
      data.dir = str(self.prepared)
    return open_dataset(data, split, config.seed)

  def assert_same_records(self, source, prepared):
    self.assertEqual(list(prepared.names), list(source.names))
    for i in range(len(source)):
      expected, found = source[i], prepared[i]
      self.assertEqual(found.keys(), expected.keys())
      self.assertEqual(prepared.size(i), source.size(i))
      for key, array in expected.items():
        self.assertEqual(found[key].dtype, array.dtype, key)
        np.testing.assert_array_equal(found[key], array, f'{source.names[i]}: {key}')

  def assert_same_info(self, info, prepared):
    np.testing.assert_array_equal(prepared.palette, info.palette)
    for name in ('name', 'class_names', 'things', 'num_images', 'home'):
      self.assertEqual(getattr(prepared, name), getattr(info, name), name)

  def test_a_training_sees_the_same_batches(self):
    config = shapes_config()
    prepare.prepare(config, self.workdir)
    self.assertGreater(len(list(self.prepared.glob('shapes-train.array_record-*'))), 2)
    for split in ('train', 'val'):
      drawn, prepared = self.open(config, split, 'shapes'), self.open(config, split)
      self.assert_same_records(drawn, prepared)
      self.assert_same_info(drawn.info, prepared.info)
    two = [
      pipeline.train_batches(self.open(config, 'train', name), config.data, seed=3)
      for name in ('shapes', 'tfds')
    ]
    for expected, found in itertools.islice(zip(*two, strict=True), 5):
      self.assertIn('depth', expected)
      self.assertIn('masks', expected)
      self.assertEqual(found.keys(), expected.keys())
      for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, key)

  def test_parts_and_fewer_extras(self):
    config = shapes_config()
    prepare.prepare(config, self.workdir)
    drawn = self.open(config, 'train', 'shapes', extras=('depth',))
    part = self.open(config, 'train[3:9]', extras=('depth',))
    self.assertEqual(list(part.names), drawn.names[3:9])
    for i in range(6):
      self.assertEqual(part[i].keys(), {'image', 'label', 'depth'})
      np.testing.assert_array_equal(part[i]['depth'], drawn[3 + i]['depth'])
    self.assertNotEqual(repr(part), repr(self.open(config, 'train[4:10]', extras=('depth',))))

  def test_overlapping_objects_keep_their_layers(self):
    layers = np.zeros((32, 40, 2), np.int32)
    layers[3:20, 5:20, 0], layers[10:30, 10:30, 1] = 1, 2
    objects = {
      'instances': layers,
      'classes': np.array([2, 5], np.int32),
      'is_crowd': np.array([False, True]),
    }
    none = {key: array[:0] for key, array in objects.items()} | {'instances': layers[..., 0] * 0}
    for found in (objects, none):
      with self.subTest(len(found['classes'])), tempfile.TemporaryDirectory() as workdir:
        self.prepared = Path(workdir) / 'prepared'
        with mock.patch.object(shapes, 'from_ids', return_value=found):
          prepare.prepare(shapes_config(), Path(workdir))
          self.assert_same_records(
            self.open(shapes_config(), 'val', 'shapes'), self.open(shapes_config(), 'val')
          )

  def test_files_stay_as_they_are_where_any_reader_gets_their_pixels(self):
    config = make_folder(self.workdir / 'data')
    prepare.prepare(config, self.workdir)
    folder, prepared = self.open(config, 'train', 'folder'), self.open(config, 'train')
    self.assert_same_records(folder, prepared)
    self.assert_same_info(folder.info, prepared.info)
    stored = {prepared.names[i]: prepared.records[i]['image'].data for i in range(len(prepared))}
    kept = [name for name in stored if (self.workdir / 'data' / name).read_bytes() == stored[name]]
    self.assertEqual(kept, ['images/photo.jpg', 'images/grey.jpg', 'images/colour.png'])
    # TFDS's own readers, which know nothing of us.
    builder = tensorflow_datasets.builder_from_directory(self.prepared)
    self.assertEqual(builder.info.features['segmentation_mask'].names, ['ground', 'thing'])
    for i, example in enumerate(builder.as_data_source('train')):
      record = folder[i]
      self.assertEqual(example['name'].decode(), folder.names[i])
      np.testing.assert_array_equal(example['image'], record['image'], folder.names[i])
      np.testing.assert_array_equal(example['segmentation_mask'][..., 0], record['label'])

  def test_killed_somewhere_it_goes_on_to_the_same_bytes(self):
    self.check_killed(stride=6)

  @pytest.mark.slow
  def test_killed_anywhere_it_goes_on_to_the_same_bytes(self):
    self.check_killed(stride=1)

  def check_killed(self, stride):
    run = subprocess.run(
      [sys.executable, '-c', KILLED, self.workdir, str(stride)],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    points = dict(line.split() for line in run.stdout.splitlines() if line[0] in 'ru')
    self.assertGreater(int(points['replace']), 10, run.stdout)
    self.assertEqual(int(points['update']), -(-7 // stride) * stride, run.stdout)
    whole = contents(self.workdir / 'whole' / 'prepared')
    self.assertGreater(len(whole), 9)
    self.assertGreater(len(list(self.workdir.iterdir())), 5)
    for workdir in self.workdir.iterdir():
      self.assertEqual(contents(workdir / 'prepared'), whole, workdir.name)

  def test_what_is_done_is_verified_and_what_is_damaged_is_made_again(self):
    config = shapes_config()
    prepare.prepare(config, self.workdir)
    whole = contents(self.prepared)
    shards = sorted(self.prepared.glob('*.array_record-*'))
    times = [path.stat().st_mtime_ns for path in shards]
    with mock.patch('builtins.print') as told:
      prepare.prepare(config, self.workdir)
    self.assertEqual(
      told.call_args.args[0], f'{self.prepared}: nothing to do, {len(shards)} shards verified'
    )
    damaged = bytearray(shards[1].read_bytes())
    damaged[200] ^= 1
    shards[1].write_bytes(damaged)
    prepare.prepare(config, self.workdir)
    self.assertEqual(contents(self.prepared), whole)
    changed = [a != path.stat().st_mtime_ns for a, path in zip(times, shards, strict=True)]
    self.assertEqual(np.flatnonzero(changed).tolist(), [1])
    shards[0].write_bytes(damaged[:-1])
    with self.assertRaisesRegex(UserError, f'{shards[0]} has .* bytes; expected'):
      self.open(config, 'train')
    shards[0].unlink()
    with self.assertRaisesRegex(UserError, f'{shards[0]} is missing'):
      self.open(config, 'train')

  @parameterized.parameters(
    ({'data.extras': ('depth',)}, 'extras is .*instances.* there'),
    ({'data.shapes_size': (32, 32)}, r'\(32, 40\).* there and .*\(32, 32\).* here'),
    ({'seed': 1}, 'seed 0.* there and .*seed 1.* here'),
    ({'eval.splits': 'val,test'}, 'splits.test is None there'),
  )
  def test_another_dataset_in_the_same_place_is_refused(self, changes, message):
    prepare.prepare(shapes_config(), self.workdir)
    whole = contents(self.prepared)
    config = shapes_config()
    config.update_from_flattened_dict(changes)
    with self.assertRaisesRegex(UserError, message):
      prepare.prepare(config, self.workdir)
    self.assertEqual(contents(self.prepared), whole)

  @parameterized.parameters(
    ('ground, 4\nthing, 3\nignore, 0', 'values.4 is thing there and ground here'),
    ('thing, 4\nground, 3\nignore, 0', 'classes.0 is ground there and thing here'),
    ('soil, 3\nthing, 4\nignore, 0', 'classes.0 is ground there and soil here'),
    ('ground, 3\nthing, 4\nsky, 5\nignore, 0', 'classes.2 is None there and sky here'),
  )
  def test_classes_that_mean_something_else_by_now_are_another_dataset(self, classes, message):
    config = make_folder(self.workdir / 'data')
    prepare.prepare(config, self.workdir)
    (self.workdir / 'data' / 'classes.txt').write_text(classes)
    with self.assertRaisesRegex(UserError, message):
      prepare.prepare(config, self.workdir)

  def test_any_file_but_the_manifest_that_is_lost_or_damaged_is_told_and_made_again(self):
    config = shapes_config()
    prepare.prepare(config, self.workdir)
    whole = contents(self.prepared)
    for name in whole.keys() - {'seg_jax.json'}:
      for damaged in (None, whole[name][: len(whole[name]) // 2]):
        path = self.prepared / name
        path.unlink()
        if damaged is not None:
          path.write_bytes(damaged)
        with self.subTest(f'{name} {damaged is None}'):
          if name in ('dataset_info.json', 'features.json', 'seg_jax-train.json'):
            with self.assertRaisesRegex(UserError, 'mode=prepare'):
              self.open(config, 'train')
          prepare.prepare(config, self.workdir)
          self.assertEqual(contents(self.prepared), whole)

  def test_a_bad_record_is_told_by_name_and_leaves_nothing_half_done(self):
    config = make_folder(self.workdir / 'data')
    prepare.SHARD_BYTES = 1e3
    bad = self.workdir / 'data' / 'masks' / 'alpha.png'
    good = bad.read_bytes()
    bad.write_bytes(good[:-30])
    with mock.patch.object(prepare, '_SAMPLES', 1), self.assertRaisesRegex(UserError, str(bad)):
      prepare.prepare(config, self.workdir)
    there = sorted(path.name for path in self.prepared.iterdir())
    self.assertFalse([name for name in there if name.startswith('.')])
    self.assertNotIn('dataset_info.json', there)
    self.assertIn('folder-train.array_record-00000', ' '.join(there))
    with self.assertRaisesRegex(UserError, 'the same --mode=prepare again'):
      self.open(config, 'train')
    bad.write_bytes(good)
    prepare.prepare(config, self.workdir)
    self.assert_same_records(self.open(config, 'train', 'folder'), self.open(config, 'train'))

  def test_a_full_disk_is_told_in_one_line(self):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, limits[1]))
    try:
      with self.assertRaisesRegex(RunError, f'{self.prepared} cannot be written .*too large'):
        prepare.prepare(shapes_config(), self.workdir)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    self.assertFalse(list(self.prepared.glob('*.array_record-*')))
    self.assertFalse(list(self.prepared.glob('.*')))

  def test_a_part_of_a_split_is_refused(self):
    config = shapes_config()
    config.train.split = 'train[:10%]'
    with self.assertRaisesRegex(UserError, r"split 'train\[:10%\]' cannot be prepared"):
      prepare.prepare(config, self.workdir)


if __name__ == '__main__':
  absltest.main()
