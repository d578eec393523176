import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics
from absl.testing import absltest, parameterized

from seg_jax.metrics import semantic


class MetricsTest(parameterized.TestCase):
  """With JAX refusing silent casts and broadcasts."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion('strict'))
    self.enter_context(jax.numpy_rank_promotion('raise'))


def example(shape=(3, 5, 7), num_classes=4, seed=0):
  """Predictions that are right half of the time, and labels of which some are ignored."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes, shape, np.int32)
  predicted = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, num_classes, shape))
  labels[rng.random(shape) < 0.2] = 255
  return predicted.astype(np.int32), labels


def count(predicted, labels, num_classes, in_top5=None):
  valid = np.ones(len(labels), bool)
  return semantic.count(predicted, labels, valid, in_top5, num_classes=num_classes)


def score(confusion, **state):
  """The result of a confusion matrix given by hand, classes named 'a', 'b', ..."""
  confusion = np.array(confusion, np.int64)
  state = semantic.empty(len(confusion)) | {'confusion': confusion} | state
  return semantic.result(state, [chr(ord('a') + i) for i in range(len(confusion))])


def column(result, name):
  return [scores[name] for scores in result['per_class'].values()]


class CountTest(MetricsTest):
  def test_confusion_equals_scikit_learn_with_truth_in_rows(self):
    predicted, labels = example()
    counts = count(predicted, labels, 4)
    kept = labels != 255
    expected = sklearn.metrics.confusion_matrix(labels[kept], predicted[kept], labels=range(4))
    np.testing.assert_array_equal(counts['confusion'], expected)
    self.assertEqual(counts['images'], 3)

  def test_padded_images_count_for_nothing(self):
    predicted, labels = example()
    valid = np.array([True, False, True])
    in_top5 = np.ones(labels.shape, bool)
    counts = semantic.count(predicted, labels, valid, in_top5, num_classes=4)
    expected = count(predicted[valid], labels[valid], 4, in_top5[valid])
    jax.tree.map(np.testing.assert_array_equal, counts, expected)

  def test_top5_is_counted_by_true_class(self):
    labels = np.array([[[0, 0, 0, 5, 255]]])
    in_top5 = np.array([[[True, True, False, True, True]]])
    counts = count(labels % 6, labels, 6, in_top5)
    np.testing.assert_array_equal(counts['top5'], [2, 0, 0, 0, 0, 1])

  def test_top5_is_demanded_above_five_classes_only(self):
    predicted, labels = example()
    with self.assertRaisesRegex(ValueError, 'in_top5'):
      count(predicted, labels, 6)
    np.testing.assert_array_equal(
      count(predicted, labels, 5)['top5'], np.bincount(labels[labels != 255], minlength=5)
    )

  def test_is_jitted_in_int32_with_the_structure_of_empty(self):
    predicted, labels = example()
    counts = jax.jit(functools.partial(semantic.count, num_classes=4))(
      predicted, labels.astype(np.uint8), np.ones(3, bool)
    )
    self.assertEqual({leaf.dtype for leaf in counts.values()}, {np.dtype('int32')})
    shapes = lambda tree: jax.tree.map(np.shape, tree)  # noqa: E731
    self.assertEqual(shapes(counts), shapes(semantic.empty(4)))


class MergeTest(MetricsTest):
  def test_empty_merged_with_counts_is_the_counts(self):
    counts = count(*example(), 4)
    merged = semantic.merge(semantic.empty(4), counts)
    jax.tree.map(np.testing.assert_array_equal, merged, counts)

  def test_image_by_image_equals_all_at_once(self):
    predicted, labels = example()
    state = semantic.empty(4)
    for i in range(len(labels)):
      state = semantic.merge(state, count(predicted[i : i + 1], labels[i : i + 1], 4))
    jax.tree.map(np.testing.assert_array_equal, state, count(predicted, labels, 4))

  def test_sums_beyond_int32_and_changes_neither_argument(self):
    largest = np.iinfo(np.int32).max
    counts = jax.tree.map(lambda x: jnp.full(x.shape, largest, jnp.int32), semantic.empty(2))
    start = semantic.empty(2)
    state = start
    for _ in range(3):
      state = semantic.merge(state, counts)
    for name, value in state.items():
      self.assertEqual(value.dtype, np.int64)
      np.testing.assert_array_equal(value, 3 * largest)
      np.testing.assert_array_equal(start[name], 0)


class ResultTest(MetricsTest):
  @parameterized.parameters(2, 4, 7)
  def test_equals_scikit_learn(self, num_classes):
    predicted, labels = example(num_classes=num_classes)
    in_top5 = np.ones(labels.shape, bool)
    state = semantic.merge(
      semantic.empty(num_classes), count(predicted, labels, num_classes, in_top5)
    )
    result = semantic.result(state, [f'class {c}' for c in range(num_classes)])

    truth, guess = labels[labels != 255], predicted[labels != 255]
    jaccard = functools.partial(sklearn.metrics.jaccard_score, truth, guess)
    f1 = functools.partial(sklearn.metrics.f1_score, truth, guess)
    expected = {
      'miou': jaccard(average='macro'),
      'pixel_accuracy': sklearn.metrics.accuracy_score(truth, guess),
      'mean_accuracy': sklearn.metrics.balanced_accuracy_score(truth, guess),
      'frequency_weighted_iou': jaccard(average='weighted'),
      'mean_dice': f1(average='macro'),
    }
    for name, value in expected.items():
      self.assertAlmostEqual(result[name], value, places=12, msg=name)
    recall = sklearn.metrics.recall_score(truth, guess, average=None)
    precision = sklearn.metrics.precision_score(truth, guess, average=None)
    np.testing.assert_allclose(column(result, 'iou'), jaccard(average=None))
    np.testing.assert_allclose(column(result, 'dice'), f1(average=None))
    np.testing.assert_allclose(column(result, 'accuracy'), recall)
    np.testing.assert_allclose(column(result, 'cosine'), np.sqrt(recall * precision))
    self.assertEqual(column(result, 'pixels'), np.bincount(truth).tolist())

  def test_by_hand(self):
    result = score([[3, 1], [2, 4]], images=7)
    self.assertEqual(column(result, 'iou'), [3 / 6, 4 / 7])
    self.assertEqual(column(result, 'dice'), [6 / 9, 8 / 11])
    self.assertEqual(column(result, 'accuracy'), [3 / 4, 4 / 6])
    self.assertEqual(column(result, 'cosine'), [3 / math.sqrt(20), 4 / math.sqrt(30)])
    self.assertEqual(column(result, 'pixels'), [4, 6])
    self.assertEqual(result['pixel_accuracy'], 0.7)
    self.assertAlmostEqual(result['frequency_weighted_iou'], 0.4 * 3 / 6 + 0.6 * 4 / 7)
    self.assertEqual(result['num_images'], 7)
    self.assertIn('255', result['ignored_pixels'])

  def test_class_in_neither_labels_nor_predictions_is_none_and_not_averaged(self):
    result = score([[3, 0, 1], [0, 0, 0], [2, 0, 4]])
    without = score([[3, 1], [2, 4]])
    nothing = dict.fromkeys(('iou', 'boundary_iou', 'dice', 'cosine', 'accuracy')) | {'pixels': 0}
    self.assertEqual(result['per_class']['b'], nothing)
    for name in ('miou', 'mean_accuracy', 'frequency_weighted_iou', 'mean_dice', 'mean_cosine'):
      self.assertEqual(result[name], without[name], name)

  def test_class_that_is_only_predicted_scores_zero_and_has_no_accuracy(self):
    result = score([[3, 1], [0, 0]], boundary=np.array([[2, 0], [3, 0], [2, 1]]))
    expected = dict.fromkeys(('iou', 'boundary_iou', 'dice', 'cosine'), 0.0)
    expected |= {'accuracy': None, 'pixels': 0}
    self.assertEqual(result['per_class']['b'], expected)
    self.assertEqual(result['miou'], 0.75 / 2)
    self.assertEqual(result['boundary_iou'], (2 / 3) / 2)
    self.assertEqual(result['mean_accuracy'], 0.75)

  def test_class_that_is_never_predicted_scores_zero(self):
    result = score([[3, 0], [2, 0]], boundary=np.array([[2, 0], [3, 1], [2, 0]]))
    expected = dict.fromkeys(('iou', 'boundary_iou', 'dice', 'cosine', 'accuracy'), 0.0)
    expected |= {'pixels': 2}
    self.assertEqual(result['per_class']['b'], expected)

  def test_a_prediction_on_an_ignored_pixel_is_no_prediction(self):
    labels = np.array([[[0, 255]]])
    state = semantic.merge(semantic.empty(2), count(np.array([[[0, 1]]]), labels, 2))
    result = semantic.result(state, ['a', 'b'])
    self.assertIsNone(result['per_class']['b']['iou'])
    self.assertEqual(result['miou'], 1)

  def test_means_are_none_where_nothing_is_labelled(self):
    result = score(np.zeros((6, 6)), images=2)
    for name in ('miou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou', 'mean_dice'):
      self.assertIsNone(result[name], name)
    self.assertIsNone(result['mean_cosine'])
    self.assertIsNone(result['top5_accuracy'])
    self.assertEqual(result['num_images'], 2)

  def test_top5_accuracy_is_given_above_five_classes_only(self):
    self.assertNotIn('top5_accuracy', score(np.eye(5)))
    top5 = np.array([1, 1, 1, 0, 0, 0])
    self.assertEqual(score(np.eye(6), top5=top5)['top5_accuracy'], 0.5)

  def test_is_exact_for_a_split_that_is_perfect_and_huge(self):
    result = score(np.diag([10**11 + 1, 3]))
    for name in ('miou', 'mean_dice', 'mean_cosine', 'pixel_accuracy'):
      self.assertEqual(result[name], 1, name)

  def test_survives_json(self):
    result = score([[3, 1, 0], [0, 0, 0], [0, 1, 0]])
    self.assertEqual(json.loads(json.dumps(result, allow_nan=False)), result)

  def test_refuses_another_number_of_names(self):
    with self.assertRaises(ValueError):
      semantic.result(semantic.empty(3), ['a', 'b'])


class InTopKTest(MetricsTest):
  @parameterized.product(dtype=(jnp.float32, jnp.bfloat16), k=(1, 3, 5))
  def test_equals_jax_top_k_with_ties(self, dtype, k):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.integers(0, 4, (2, 5, 7, 9)), dtype)  # few values: many ties
    labels = rng.integers(0, 9, (2, 5, 7), np.int32)
    _, best = jax.lax.top_k(logits, k)
    expected = (np.asarray(best) == labels[..., None]).any(-1)
    np.testing.assert_array_equal(semantic.in_top_k(logits, labels, k), expected)

  def test_is_false_where_ignored(self):
    logits = np.zeros((1, 1, 2, 3), np.float32)
    labels = np.array([[[255, 1]]])
    np.testing.assert_array_equal(semantic.in_top_k(logits, labels), [[[False, True]]])


class TableTest(MetricsTest):
  def test_columns_are_aligned_and_none_is_a_dash(self):
    state = semantic.empty(3) | {'confusion': np.array([[3, 1, 0], [0, 0, 0], [4, 0, 0]])}
    names = ['sky', 'a class with a long name', 'x']
    for confusion in (state['confusion'], np.zeros((3, 3), np.int64)):
      result = semantic.result(state | {'confusion': confusion}, names)
      header, _, *rows, _, mean, _ = semantic.table(result).split('\n')
      ends = [header.index(word) + len(word) for word in ('IoU', 'Dice', 'accuracy', 'pixels')]
      for row, name in zip(rows, names, strict=True):
        self.assertStartsWith(row, name)
        self.assertLen(row, ends[-1])
        for end in ends:
          self.assertRegex(row[:end], r' (-|\d+\.\d\d)$')
      self.assertStartsWith(mean, 'mean')

  def test_shows_percent_by_hand(self):
    boundary = np.array([[1, 3], [2, 4], [2, 3]])
    text = semantic.table(score([[3, 1], [2, 4]], images=7, boundary=boundary))
    rows = [line.split() for line in text.split('\n')]
    self.assertEqual(rows[2], ['a', '50.00', '66.67', '75.00', '40.00'])
    self.assertEqual(rows[3], ['b', '57.14', '72.73', '66.67', '60.00'])
    self.assertEqual(rows[5], ['mean', '53.57', '69.70', '70.83'])
    last = 'pixel accuracy 70.00, boundary IoU 54.17, 7 images'  # (1 / 3 + 3 / 4) / 2
    self.assertEqual(text.split('\n')[-1], last)


if __name__ == '__main__':
  absltest.main()
