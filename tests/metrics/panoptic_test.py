"""Panoptic quality beside panopticapi's, which is written out here: it is on no package index."""

import functools
import json
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs.common import get_config
from seg_jax.data.datasets import open_dataset
from seg_jax.metrics import panoptic

SAMPLE = Path(__file__).parents[2].parent / 'shared/data/coco_panoptic/sample_data'
ROWS, CLASSES = 40, 6  # of segments, for one compilation


def by_panopticapi(pictures):
  """`pq_compute_single_core` of cocodataset/panopticapi, of maps and segments instead of files.

  A picture is two maps of ids and for each {id: `category_id`}, `iscrowd` and `area` in the first.
  """
  stat = {}

  def of(category):
    return stat.setdefault(category, {'iou': 0.0, 'tp': 0, 'fp': 0, 'fn': 0})

  for true_map, true_segments, predicted_map, predicted_segments in pictures:
    pairs, times = np.unique(
      np.stack([true_map.ravel(), predicted_map.ravel()]), axis=1, return_counts=True
    )
    shared = dict(zip(map(tuple, pairs.T.tolist()), times.tolist(), strict=True))
    labels, times = np.unique(predicted_map, return_counts=True)
    areas = dict(zip(labels.tolist(), times.tolist(), strict=True))
    assert areas.keys() - {0} == predicted_segments.keys()
    true_matched, predicted_matched = set(), set()
    for (true, predicted), intersection in shared.items():
      if true not in true_segments or predicted not in predicted_segments:
        continue
      row, category = true_segments[true], predicted_segments[predicted]['category_id']
      if row['iscrowd'] or row['category_id'] != category:
        continue
      union = areas[predicted] + row['area'] - intersection - shared.get((0, predicted), 0)
      if intersection / union > 0.5:
        of(category)['tp'] += 1
        of(category)['iou'] += intersection / union
        true_matched.add(true)
        predicted_matched.add(predicted)
    crowds = {}
    for true, row in true_segments.items():
      if true in true_matched:
        continue
      if row['iscrowd']:
        crowds[row['category_id']] = true
      else:
        of(row['category_id'])['fn'] += 1
    for predicted, row in predicted_segments.items():
      if predicted in predicted_matched:
        continue
      intersection = shared.get((0, predicted), 0)
      if row['category_id'] in crowds:
        intersection += shared.get((crowds[row['category_id']], predicted), 0)
      if intersection / areas[predicted] <= 0.5:
        of(row['category_id'])['fp'] += 1
  return stat


def averaged_by_panopticapi(stat, categories):
  """`PQStat.pq_average`, of those `categories`."""
  rows = {}
  for category in categories:
    iou, tp, fp, fn = (stat.get(category, {}).get(key, 0) for key in ('iou', 'tp', 'fp', 'fn'))
    if tp + fp + fn:
      segments = tp + 0.5 * fp + 0.5 * fn
      rows[category] = iou / segments, iou / tp if tp else 0, tp / segments
  return np.mean(list(rows.values()), 0), rows


@functools.partial(jax.jit, static_argnums=5)
def counts_of(predicted, truth, classes, truth_classes, is_crowd, num_classes):
  shared = panoptic.shared(predicted, truth, len(classes), len(truth_classes))
  return panoptic.count(shared, classes, truth_classes, is_crowd, num_classes)


def filled(values):
  """With the rows that batches have behind."""
  return np.pad(values, (0, ROWS - len(values)))


def counted(pictures, num_classes=CLASSES):
  """The sum over pictures: two maps and classes, and of the true ones whether it is a crowd."""
  state = panoptic.empty(num_classes)
  for predicted, classes, truth, truth_classes, is_crowd in pictures:
    rows = (filled(x) for x in (classes, truth_classes, is_crowd))
    counts = counts_of(predicted, truth, *rows, num_classes)
    state = {name: total + np.asarray(counts[name]) for name, total in state.items()}
  return state


def with_segments(pictures):
  """As `by_panopticapi` takes them."""
  for predicted, classes, truth, truth_classes, is_crowd in pictures:
    there = np.unique(truth[truth > 0]).tolist()
    yield (
      truth,
      {
        k: {
          'category_id': int(truth_classes[k - 1]),
          'iscrowd': int(is_crowd[k - 1]),
          'area': int((truth == k).sum()),
        }
        for k in there
      },
      predicted,
      {
        k: {'category_id': int(classes[k - 1])}
        for k in np.unique(predicted[predicted > 0]).tolist()
      },
    )


def random_picture(seed):
  """Patches with void among them and a crowd of two classes; the prediction is near the truth."""
  rng = np.random.default_rng(seed)
  number = 20
  patches = rng.integers(0, number + 1, (8, 9))
  truth = np.kron(patches, np.ones((6, 7), int)).astype(np.int32)
  truth_classes = rng.integers(0, CLASSES - 1, number).astype(np.int32)
  is_crowd = np.zeros(number, bool)
  for k in (0, 1):
    is_crowd[np.flatnonzero(truth_classes == k)[:1]] = True
  other = np.kron(rng.integers(0, number + 8, (8, 9)), np.ones((6, 7), int))
  moved = np.roll(truth, rng.integers(0, 3, 2), (0, 1))
  predicted = np.where(np.kron(rng.random((8, 9)) < 0.3, np.ones((6, 7))) > 0, other, moved)
  predicted[rng.random(truth.shape) < 0.05] = 0
  classes = np.concatenate([truth_classes, rng.integers(0, CLASSES - 1, 8)])
  wrong = rng.random(len(classes)) < 0.1
  classes = np.where(wrong, (classes + 1) % CLASSES, classes).astype(np.int32)
  return predicted.astype(np.int32), classes, truth, truth_classes, is_crowd


def altered(how, truth, classes):
  """A prediction for a true map."""
  predicted, classes = truth.copy(), classes.copy()
  if how == 'shifted':
    predicted = np.roll(truth, (3, 5), (0, 1))
  elif how == 'merged':  # each with the next one, of the first one's class
    predicted = np.where(truth > 0, truth - (truth - 1) % 2, 0)
  elif how == 'dropped':
    predicted[truth % 3 == 0] = 0
  elif how == 'wrong':
    classes[::2] = np.roll(classes, 7)[::2]
  return predicted.astype(np.int32), classes


class PanopticQualityTest(parameterized.TestCase):
  def check(self, state, stat, class_of=None):
    for name in ('tp', 'fp', 'fn', 'iou'):
      expected = np.zeros(len(state[name]))
      for category, values in stat.items():
        expected[class_of[category] if class_of else category] = values[name]
      np.testing.assert_allclose(state[name], expected, rtol=1e-6, err_msg=name)

  def test_equals_panopticapi_on_random_maps(self):
    pictures = [random_picture(seed) for seed in range(12)]
    state = counted(pictures)
    stat = by_panopticapi(with_segments(pictures))
    self.check(state, stat)
    for name in ('tp', 'fp', 'fn'):
      self.assertGreater(state[name].sum(), 12, name)
    predicted = sum(len(np.unique(picture[0][picture[0] > 0])) for picture in pictures)
    self.assertLess(state['tp'].sum() + state['fp'].sum(), predicted)  # some are let off
    things = (0, 1, 4)
    names = [f'class {k}' for k in range(CLASSES)]
    measures = panoptic.result(state, names, things)
    stuff = set(range(CLASSES)) - set(things)
    for kind, categories in (('', range(CLASSES)), ('_things', things), ('_stuff', stuff)):
      means, rows = averaged_by_panopticapi(stat, categories)
      actual = [measures[f'{name}{kind}'] for name in ('pq', 'sq', 'rq')]
      np.testing.assert_allclose(actual, means, rtol=1e-6)
      for k, row in rows.items():
        actual = [measures['per_class'][names[k]][name] for name in ('pq', 'sq', 'rq')]
        np.testing.assert_allclose(actual, row, rtol=1e-6)

  @parameterized.parameters('identical', 'shifted', 'merged', 'dropped', 'wrong')
  def test_equals_panopticapi_on_pictures_of_coco(self, how):
    """Ours through the dataset, theirs from the owners' files."""
    if not SAMPLE.is_dir():
      self.skipTest(f'{SAMPLE} is not there')
    content = json.loads((SAMPLE / 'panoptic_examples.json').read_text())
    class_of = {row['id']: k for k, row in enumerate(content['categories'])}
    ids = list(class_of)
    source = self.source()
    ours, theirs = [], []
    for annotation in content['annotations']:
      name = f'val2017/{Path(annotation["file_name"]).stem}.jpg'
      truth, classes, is_crowd = self.segments(source[source.names.index(name)])
      predicted, predicted_classes = altered(how, truth, classes)
      ours.append((predicted, predicted_classes, truth, classes, is_crowd))
      rgb = np.array(Image.open(SAMPLE / 'panoptic_examples' / annotation['file_name']), int)
      there = np.unique(predicted[predicted > 0]).tolist()
      theirs.append(
        (
          rgb @ [1, 256, 256**2],
          {row['id']: row for row in annotation['segments_info']},
          predicted,
          {k: {'category_id': ids[predicted_classes[k - 1]]} for k in there},
        )
      )
    state = counted(ours, len(ids))
    self.check(state, by_panopticapi(theirs), class_of)
    names = [row['name'] for row in content['categories']]
    things = [k for k, row in enumerate(content['categories']) if row['isthing']]
    measures = panoptic.result(state, names, things)
    for name in ('pq', 'sq', 'rq', 'pq_things', 'pq_stuff'):
      if how == 'identical':
        self.assertEqual(measures[name], 1)
      else:
        self.assertBetween(measures[name], 0.0, 0.99)

  def source(self):
    root = Path(self.enterContext(tempfile.TemporaryDirectory()))
    (root / 'annotations').mkdir()
    for place, target in (
      ('val2017', 'input_images'),
      ('annotations/panoptic_val2017', 'panoptic_examples'),
      ('annotations/panoptic_val2017.json', 'panoptic_examples.json'),
    ):
      os.symlink(SAMPLE / target, root / place)
    config = get_config('coco').data
    config.dir, config.variant, config.extras = str(root), 'panoptic', ('instances',)
    return open_dataset(config, 'val', seed=0)

  def segments(self, record):
    """Things as the record has them, then each kind of stuff that is there."""
    truth, classes = record['instances'].astype(np.int32), list(record['classes'])
    for k in np.unique(record['label'][(truth == 0) & (record['label'] != 255)]):
      classes.append(k)
      truth[(truth == 0) & (record['label'] == k)] = len(classes)
    is_crowd = np.pad(record['is_crowd'], (0, len(classes) - len(record['is_crowd'])))
    return truth, np.array(classes, np.int32), is_crowd

  def test_padding_is_nowhere(self):
    predicted, classes, truth, truth_classes, _ = random_picture(0)
    inside = np.zeros(truth.shape, bool)
    inside[:31, :40] = True
    sizes = len(classes), len(truth_classes)
    shared = panoptic.shared(predicted, truth, *sizes, inside)
    np.testing.assert_array_equal(
      shared, panoptic.shared(predicted[:31, :40], truth[:31, :40], *sizes)
    )
    expected = np.zeros((sizes[0] + 1, sizes[1] + 1), int)
    np.add.at(expected, (predicted[inside], truth[inside]), 1)
    np.testing.assert_array_equal(shared, expected)

  def test_crowds_of_a_class_count_together(self):
    """A segment on the half of each of two; panopticapi would see one of them."""
    shared = np.zeros((2, 4), np.int32)
    shared[1] = 0, 3, 3, 4
    truth_classes, is_crowd = np.int32([0, 0, 1]), np.array([True, True, False])
    counts = panoptic.count(shared, np.int32([0]), truth_classes, is_crowd, 2)
    self.assertEqual(counts['fp'].tolist(), [0, 0])
    self.assertEqual(counts['fn'].tolist(), [0, 1])

  @parameterized.parameters((3, 5, 0), (3, 6, 1), (4, 7, 0))
  def test_half_is_not_enough(self, void, other, false):
    """An IoU of 0.5 is no match, and half in the void is a mistake."""
    shared = np.zeros((3, 3), np.int32)
    shared[1, 0], shared[1, 1] = void, other - void
    shared[2, 1] = other - void  # of the other class: as much again
    counts = panoptic.count(shared, np.int32([0, 1]), np.int32([0, 1]), np.zeros(2, bool), 2)
    self.assertEqual(counts['tp'].tolist(), [0, 0])
    self.assertEqual(counts['fp'].tolist(), [false, 1])

  def test_of_nothing_there_is_no_mean(self):
    state = panoptic.empty(3)
    measures = panoptic.result(state, 'abc', ())
    self.assertTrue(all(measures[f'{name}_stuff'] is None for name in ('pq', 'sq', 'rq')))
    state['fn'][1] = 2
    state['tp'][2], state['iou'][2], state['fp'][2] = 2, 1.5, 1
    measures = panoptic.result(state, 'abc', (0, 1)) | {'num_images': 4}
    self.assertEqual(json.loads(json.dumps(measures)), measures)
    self.assertEqual(measures['per_class']['a'], {'pq': None, 'sq': None, 'rq': None})
    self.assertEqual(measures['per_class']['b'], {'pq': 0, 'sq': 0, 'rq': 0})
    self.assertEqual(measures['per_class']['c'], {'pq': 0.6, 'sq': 0.75, 'rq': 0.8})
    self.assertEqual((measures['pq'], measures['pq_things'], measures['pq_stuff']), (0.3, 0, 0.6))
    lines = [line.split() for line in panoptic.table(measures).splitlines()]
    self.assertIn(['a', '-', '-', '-'], lines)
    self.assertIn(['c', '60.00', '75.00', '80.00'], lines)
    self.assertIn(['mean', '30.00', '37.50', '40.00'], lines)
    self.assertEqual(lines[-1], ['4', 'images'])


if __name__ == '__main__':
  absltest.main()
