import json
import math

import jax
import numpy as np
from absl.testing import absltest, parameterized

from seg_jax.metrics import depth as metrics


def example(shape=(5, 6, 7), seed=0):
  """Depths of a few metres, of which some are not known; the last picture is padding."""
  rng = np.random.default_rng(seed)
  truth = np.exp(rng.normal(1, 0.8, shape)).astype(np.float32)
  depth = (truth * np.exp(rng.normal(0, 0.3, shape))).astype(np.float32)
  truth[rng.random(shape) < 0.3] = 0
  return depth, truth, np.arange(shape[0]) < shape[0] - 1


def by_numpy(depth, truth, valid):
  """The published formulas, in float64."""
  depth, truth = depth[valid].astype(np.float64), truth[valid].astype(np.float64)
  y, t = depth[truth > 0], truth[truth > 0]
  ratio = np.maximum(y / t, t / y)
  return {
    'abs_rel': np.mean(np.abs(y - t) / t),
    'rmse': np.sqrt(np.mean((y - t) ** 2)),
    'rmse_log': np.sqrt(np.mean((np.log(y) - np.log(t)) ** 2)),
    'log10': np.mean(np.abs(np.log10(y) - np.log10(t))),
    'delta1': np.mean(ratio < 1.25),
    'delta2': np.mean(ratio < 1.25**2),
    'delta3': np.mean(ratio < 1.25**3),
    'pixels': len(t),
    'num_images': int(valid.sum()),
  }


class DepthMetricsTest(parameterized.TestCase):
  def score(self, *batches):
    state, count = metrics.empty(), jax.jit(metrics.count)
    for batch in batches:
      state = metrics.merge(state, jax.device_get(count(*batch)))
    return metrics.result(state)

  def test_equals_the_formulas(self):
    depth, truth, valid = example()
    result, expected = self.score((depth, truth, valid)), by_numpy(depth, truth, valid)
    self.assertEqual(result.keys(), expected.keys())
    for name, value in expected.items():
      np.testing.assert_allclose(result[name], value, rtol=1e-6, err_msg=name)
    self.assertLess(result['delta1'], result['delta2'])
    self.assertLess(result['delta2'], result['delta3'])

  def test_by_hand(self):
    """Twice, four thirds, right, and half, of 1, 3, 5 and 8 metres; the fifth is not known."""
    truth = np.float32([[[1, 3, 5, 8, 0]]])
    depth = np.float32([[[2, 4, 5, 4, 7]]])
    result = self.score((depth, truth, np.ones(1, bool)))
    self.assertAlmostEqual(result['abs_rel'], (1 + 1 / 3 + 0 + 1 / 2) / 4, places=6)
    self.assertAlmostEqual(result['rmse'], math.sqrt((1 + 1 + 0 + 16) / 4), places=6)
    logs = (math.log(2), math.log(4 / 3), 0, math.log(2))
    self.assertAlmostEqual(result['rmse_log'], math.sqrt(sum(x * x for x in logs) / 4), places=6)
    self.assertAlmostEqual(result['log10'], sum(logs) / math.log(10) / 4, places=6)
    # 1.25, 1.5625 and 1.953125: 4 / 3 is below the second, 2 is below none.
    self.assertEqual([result[f'delta{i}'] for i in (1, 2, 3)], [0.25, 0.5, 0.5])
    self.assertEqual((result['pixels'], result['num_images']), (4, 1))

  def test_a_ratio_of_the_threshold_itself_is_not_within(self):
    result = self.score((np.float32([[[5, 4]]]), np.float32([[[4, 5]]]), np.ones(1, bool)))
    self.assertEqual((result['delta1'], result['delta2']), (0, 1))

  def test_picture_by_picture_equals_all_at_once(self):
    batch = example()
    parts = [tuple(x[i : i + 1] for x in batch) for i in range(5)]
    whole, joined = self.score(batch), self.score(*parts)
    for name, value in whole.items():
      np.testing.assert_allclose(joined[name], value, rtol=1e-6, err_msg=name)

  def test_sums_are_added_in_64_bits_and_neither_argument_is_changed(self):
    counts = jax.tree.map(lambda x: np.ones_like(x), metrics.empty())
    start = metrics.empty()
    start['squared'] += 2.0**30
    start['pixels'] += 2**40
    state = metrics.merge(start, counts)
    self.assertEqual((state['squared'], state['pixels']), (2.0**30 + 1, 2**40 + 1))
    self.assertEqual((start['squared'], start['pixels']), (2.0**30, 2**40))
    self.assertEqual(state['within'].dtype, np.int64)
    self.assertEqual(state['abs_rel'].dtype, np.float64)

  def test_a_perfect_prediction(self):
    _, truth, valid = example()
    result = self.score((truth + (truth == 0), truth, valid))
    for name in ('abs_rel', 'rmse', 'rmse_log', 'log10'):
      self.assertEqual(result[name], 0, name)
    self.assertEqual([result[f'delta{i}'] for i in (1, 2, 3)], [1, 1, 1])

  @parameterized.parameters(0.0, np.inf, np.nan)
  def test_what_cannot_be_scored_is_none_and_survives_json(self, value):
    """Nothing known, or a prediction that is not finite."""
    depth, truth, valid = example()
    if value == 0:
      truth[:] = 0
    else:
      truth[0, 0, 0], depth[0, 0, 0] = 1, value
    result = self.score((depth, truth, valid))
    for name in ('abs_rel', 'rmse', 'rmse_log', 'log10'):
      self.assertIsNone(result[name], name)
    self.assertEqual(json.loads(json.dumps(result, allow_nan=False)), result)
    self.assertIn('AbsRel -, RMSE - m', metrics.table(result))

  def test_the_table_shows_every_score(self):
    result = by_numpy(*example())
    text = metrics.table({name: float(value) for name, value in result.items()} | {'pixels': 1234})
    for name in ('abs_rel', 'rmse', 'rmse_log', 'log10'):
      self.assertIn(f' {result[name]:.4f}', text)
    for i in (1, 2, 3):
      self.assertIn(f'{100 * result[f"delta{i}"]:.2f}', text)
    self.assertIn('1,234 pixels', text)


if __name__ == '__main__':
  absltest.main()
