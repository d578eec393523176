import contextlib
import io
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image

from configs.common import get_config
from seg_jax import inspection, losses
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.errors import UserError

PALETTE = np.array([[9, 9, 9], [200, 0, 0], [0, 0, 200]], np.uint8)
INFO = DatasetInfo('fake', ('sky', 'road', 'car'), PALETTE)


class FakeSource:
  """Records held in memory; one that is a `UserError` is raised."""

  info = INFO

  def __init__(self, records, split):
    self._records = records
    self.names = [f'{split}/{i}.png' for i in range(len(records))]

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    if isinstance(self._records[index], UserError):
      raise self._records[index]
    return self._records[index]


def record(rng, shape=(40, 50), classes=(0, 1, 255)):
  image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
  return {'image': image, 'label': rng.choice(np.array(classes, np.uint8), shape)}


class InspectTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.rng = np.random.default_rng(0)
    self.workdir = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.printed = ''

  def inspect(self, **splits):
    """The reports of the splits; the first is the training split. An error cannot be opened."""

    def open_dataset(data_config, split, seed):
      if isinstance(splits[split], UserError):
        raise splits[split]
      return FakeSource(splits[split], split)

    config = get_config()
    config.data.max_instances = 2
    config.train.split, *others = splits
    config.eval.splits = ', '.join(others or splits)
    opened = mock.patch.object(inspection, 'open_dataset', open_dataset)
    out = io.StringIO()
    try:
      with opened, contextlib.redirect_stdout(out):
        inspection.inspect(config, self.workdir)
    finally:
      self.printed = out.getvalue()
    return [self.report(split) for split in splits]

  def report(self, split):
    return json.loads((self.workdir / 'inspect' / f'{split}.json').read_text())

  def test_statistics_equal_a_plain_count(self):
    records = [record(self.rng, (9, 7 + i), (i % 3, 1, 255)) for i in range(40)]
    class_pixels, image_pixels = inspection.class_statistics(FakeSource(records, 'train'))
    labels = [r['label'] for r in records]
    for c in range(3):
      self.assertEqual(class_pixels[c], sum((label == c).sum() for label in labels))
      self.assertEqual(image_pixels[c], sum((label != 255).sum() for label in labels if c in label))
    self.assertEqual((class_pixels.dtype, image_pixels.dtype), (np.int64, np.int64))

  def test_statistics_raise_what_the_source_raises(self):
    records = [record(self.rng), UserError('b.png: damaged')]
    with self.assertRaisesRegex(UserError, 'b.png: damaged'):
      inspection.class_statistics(FakeSource(records, 'train'))

  def test_report_counts_and_weighs(self):
    records = [record(self.rng), record(self.rng, classes=(0, 1, 2)), record(self.rng, (60, 50))]
    (report,) = self.inspect(train=records)
    labels = np.concatenate([r['label'].ravel() for r in records])
    self.assertEqual(report['num_images'], 3)
    self.assertEqual(report['sizes'], {'40 x 50': 2, '60 x 50': 1})
    self.assertEqual([row['images'] for row in report['classes'].values()], [3, 3, 1])
    self.assertEqual(report['ignored']['images'], 2)
    rows = [*report['classes'].values(), report['ignored']]
    for value, row in zip((0, 1, 2, 255), rows, strict=True):
      self.assertEqual(row['pixels'], (labels == value).sum())
      self.assertAlmostEqual(row['share'], (labels == value).mean())
    statistics = inspection.class_statistics(FakeSource(records, 'train'))
    for name in ('median_frequency', 'enet'):
      np.testing.assert_allclose(
        [row[name] for row in report['classes'].values()], losses.class_weights(name, *statistics)
      )
    self.assertEqual(report['suspicious'], {})
    self.assertIn('nothing suspicious', self.printed)
    self.assertRegex(self.printed, r'\n *car +')

  def test_finds_what_is_suspicious_in_a_record(self):
    flat = record(self.rng)
    flat['image'][:] = 7
    cases = {
      'one_colour': flat,
      'one_class': record(self.rng, classes=(1,)),
      'ignored': record(self.rng, classes=(0, 1, 255, 255, 255)),
      'size': record(self.rng, (40, 161)),
    }
    (report,) = self.inspect(train=[record(self.rng), *cases.values()])
    for i, kind in enumerate(cases, start=1):
      (remark,) = report['suspicious'].pop(kind)
      self.assertStartsWith(remark, f'train/{i}.png: ')
      self.assertIn(remark, self.printed)
    self.assertEqual(report['suspicious'], {})

  def test_finds_small_pictures_and_labels_of_nothing(self):
    records = [record(self.rng, (31, 40)), record(self.rng, classes=(255,))]
    (report,) = self.inspect(train=records)
    self.assertEqual(
      report['suspicious'],
      {
        'size': ['train/0.png: 31 x 40 (rows x columns)'],
        'ignored': ['train/1.png: 100 % of the label is ignored'],
      },
    )

  def test_finds_duplicates_and_leaks(self):
    a, b, c = (record(self.rng) for _ in range(3))
    reshaped = {name: array.reshape(50, 40, *array.shape[2:]) for name, array in c.items()}
    train, val = self.inspect(train=[a, b, a, c], val=[reshaped, b])
    self.assertEqual(
      train['suspicious'], {'duplicate': ['train/2.png: the same picture as train/0.png']}
    )
    self.assertEqual(
      val['suspicious'], {'leak': ['val/1.png: the same picture as train/1.png (train)']}
    )

  def test_finds_classes_that_training_never_shows(self):
    train, val = self.inspect(train=[record(self.rng)], val=[record(self.rng, classes=(0, 2))])
    self.assertEqual(train['suspicious'], {})
    self.assertEqual(
      val['suspicious'], {'untrained_class': ['car: in 1 images here, in none of train']}
    )

  def test_lists_all_unreadable_records_and_then_fails(self):
    bad = [UserError('train/1.png: truncated'), UserError('val/0.png: no mask')]
    with self.assertRaisesRegex(UserError, r'^2 of 4 records .*train/1\.png: truncated$'):
      self.inspect(train=[record(self.rng), bad[0], record(self.rng)], val=[bad[1]])
    self.assertEqual(self.report('train')['suspicious'], {'unreadable': ['train/1.png: truncated']})
    self.assertEqual(self.report('val')['suspicious'], {'unreadable': ['val/0.png: no mask']})
    self.assertIn('val/0.png: no mask', self.printed)
    self.assertEqual(sum(row['images'] for row in self.report('train')['classes'].values()), 4)

  def test_a_split_that_cannot_be_opened_does_not_stop_the_others(self):
    with self.assertRaisesRegex(UserError, "^split 'train' cannot be used: no masks$"):
      self.inspect(train=UserError('no masks'), val=[record(self.rng)])
    self.assertEqual(self.report('train')['error'], 'no masks')
    self.assertEqual(self.report('val')['num_images'], 1)
    self.assertIn('fake, val: 1 images', self.printed)
    self.assertNotIn('untrained_class', self.report('val')['suspicious'])
    with self.assertRaisesRegex(UserError, '^data.dir is not set$'):
      self.inspect(train=UserError('data.dir is not set'), val=UserError('data.dir is not set'))

  def test_classes_that_never_occur_are_one_line_with_finite_weights(self):
    (report,) = self.inspect(train=[record(self.rng)])
    self.assertIn('1 of 3 classes never occur: car\n', self.printed)
    self.assertNotRegex(self.printed, r'\n *car +')
    for row in report['classes'].values():
      self.assertTrue(np.isfinite([row['median_frequency'], row['enet']]).all())

  def test_counts_objects_by_class(self):
    ids = np.zeros((40, 50, 2), np.int32)
    ids[:10, :10, 0] = 1
    ids[5:10, :10, 1] = 2  # over the first
    ids[30:, 0, 0] = 3
    objects = {'classes': np.int32([2, 1, 2]), 'is_crowd': np.array([False, False, True])}
    empty = {'classes': np.int32([2]), 'is_crowd': np.array([False])}
    (report,) = self.inspect(
      train=[
        record(self.rng) | {'instances': ids} | objects,
        record(self.rng) | {'instances': (ids == 3).max(-1).astype(np.int32)} | objects | empty,
        record(self.rng) | {'instances': np.zeros((40, 50), np.int32)} | empty,
      ]
    )
    keys = ('objects', 'crowds', 'images', 'smallest', 'median')
    self.assertEqual(
      report['objects'],
      {
        'road': dict(zip(keys, (1, 0, 1, 50, 50), strict=True)),
        'car': dict(zip(keys, (3, 1, 3, 0, 10), strict=True)),
      },
    )
    self.assertEqual(report['most_objects'], 3)
    self.assertRegex(self.printed, r'\ncar +3 +1 +3 +0 +10\n')
    self.assertEqual(
      report['suspicious'],
      {
        'many_objects': ['train/0.png: 3 objects, more than data.max_instances = 2'],
        'empty_object': ['train/2.png: 1 of 1 objects have no pixel'],
      },
    )

  def test_measures_depth(self):
    depth = np.zeros((40, 50), np.float32)
    depth[:10] = 2
    depth[10:20] = 8
    (report,) = self.inspect(
      train=[record(self.rng) | {'depth': depth}, record(self.rng) | {'depth': 0 * depth}]
    )
    self.assertEqual(report['depth'], {'lowest': 2, 'highest': 8, 'mean': 5, 'unknown': 0.75})
    self.assertIn('depth: 2 to 8 m, mean 5 m, 75.00% of the pixels unknown', self.printed)
    self.assertEqual(report['suspicious'], {'no_depth': ['train/1.png: no depth is known']})

  def test_prints_a_few_lines_of_a_kind_and_stores_all(self):
    records = [record(self.rng, classes=(0,)) for _ in range(30)]
    (report,) = self.inspect(train=records)
    self.assertLen(report['suspicious']['one_class'], 30)
    self.assertEqual(self.printed.count('all that is labelled is sky'), inspection.text.PRINTED)

  def test_leaves_one_picture_and_one_file_of_numbers_for_each_split(self):
    self.inspect(train=[record(self.rng)], val=[record(self.rng)] * 20)
    files = sorted(path.name for path in (self.workdir / 'inspect').iterdir())
    self.assertEqual(files, ['train.json', 'train.png', 'val.json', 'val.png'])
    with Image.open(self.workdir / 'inspect' / 'train.png') as sheet:
      self.assertGreater(min(sheet.size), 200)


if __name__ == '__main__':
  absltest.main()
