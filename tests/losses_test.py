import functools
import math
import unittest

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import common
from seg_jax import losses
from seg_jax.errors import UserError

try:
  import torch
except ImportError:
  torch = None

needs_torch = unittest.skipIf(torch is None, 'PyTorch, the oracle, is not installed')

CLASS_WEIGHTS = np.array([0.5, 3, 1, 0.25], np.float32)
LOSSES = {
  'cross_entropy': losses.cross_entropy,
  'hard_pixels': functools.partial(
    losses.cross_entropy,
    class_weights=CLASS_WEIGHTS,
    label_smoothing=0.1,
    hard_pixel_fraction=0.5,
  ),
  'focal': functools.partial(losses.focal, gamma=1.5, class_weights=CLASS_WEIGHTS),
  'dice': losses.dice,
  'lovasz': losses.lovasz_softmax,
}


@functools.cache
def compiled(name):
  """Value and gradient of a loss, compiled once for all tests."""
  return jax.jit(jax.value_and_grad(LOSSES[name]))


def value_and_gradient(logits, labels, **options):
  """Of cross entropy."""
  loss = functools.partial(losses.cross_entropy, **options)
  return jax.jit(jax.value_and_grad(loss))(logits, labels)


class LossTest(parameterized.TestCase):
  """With JAX refusing silent casts and broadcasts."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion('strict'))
    self.enter_context(jax.numpy_rank_promotion('raise'))


def example(shape=(2, 3, 5), num_classes=4, seed=0, ignored=0.2, absent=()):
  """Logits, and labels of which a share is ignored; no label is of a class in `absent`."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (*shape, num_classes)).astype(np.float32)
  labels = rng.choice([c for c in range(num_classes) if c not in absent], shape).astype(np.int32)
  labels[rng.random(shape) < ignored] = 255
  return logits, labels


def labelled_pixels(logits, labels):
  """(softmax in float64, class) of each pixel that is not ignored, in order."""
  for index in np.ndindex(labels.shape):
    if labels[index] != 255:
      exponentials = np.exp(logits[index].astype(np.float64))
      yield exponentials / exponentials.sum(), labels[index]


def focal_by_loop(logits, labels):
  numerator = denominator = 0
  for probs, label in labelled_pixels(logits, labels):
    numerator -= CLASS_WEIGHTS[label] * (1 - probs[label]) ** 1.5 * math.log(probs[label])
    denominator += CLASS_WEIGHTS[label]
  return numerator / denominator


def dice_by_loop(logits, labels):
  scores = []
  for c in set(labels.ravel()) - {255}:
    product = squares = 0
    for probs, label in labelled_pixels(logits, labels):
      product += probs[c] * (label == c)
      squares += probs[c] ** 2 + (label == c)
    scores.append(2 * product / squares)
  return 1 - sum(scores) / len(scores)


def lovasz_by_loop(logits, labels):
  """Lovász extension of |M| / |{y = c} or M|, the Jaccard loss of the misclassified pixels M."""
  pixels = list(labelled_pixels(logits, labels))
  values = []
  for c in set(labels.ravel()) - {255}:
    truth = {i for i, (_, label) in enumerate(pixels) if label == c}
    errors = [1 - probs[c] if label == c else probs[c] for probs, label in pixels]
    wrong, before, value = set(), 0.0, 0.0
    for i in sorted(range(len(pixels)), key=lambda i: -errors[i]):
      wrong.add(i)
      after = len(wrong) / len(truth | wrong)
      value += errors[i] * (after - before)
      before = after
    values.append(value)
  return sum(values) / len(values)


def torch_cross_entropy(logits, labels, weights=None, smoothing=0.0, reduction='mean'):
  """The loss and its gradient."""
  logits = torch.tensor(logits, requires_grad=True)
  loss = torch.nn.functional.cross_entropy(
    logits.movedim(-1, 1),
    torch.tensor(labels, dtype=torch.long),
    weight=None if weights is None else torch.tensor(weights),
    ignore_index=255,
    reduction=reduction,
    label_smoothing=smoothing,
  )
  loss.sum().backward()
  return loss.detach().numpy(), logits.grad.numpy()


def numerical_gradient(function, logits, step=1e-5):
  logits = logits.astype(np.float64)
  gradient = np.zeros_like(logits)
  for index in np.ndindex(logits.shape):
    up, down = logits.copy(), logits.copy()
    up[index] += step
    down[index] -= step
    gradient[index] = (function(up) - function(down)) / (2 * step)
  return gradient


class EveryLossTest(LossTest):
  @parameterized.parameters(*LOSSES)
  def test_is_zero_with_zero_gradient_where_all_is_ignored(self, name):
    logits, labels = example(ignored=1)
    logits[0, 0, 0] = [1e4, -1e4, 0, 0]
    value, gradient = compiled(name)(logits, labels)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, 0)

  @parameterized.parameters(*LOSSES)
  def test_logits_of_ignored_pixels_change_nothing(self, name):
    logits, labels = example()
    value, gradient = compiled(name)(logits, labels)
    ignored = labels == 255
    logits[ignored] = 50 * np.random.default_rng(1).normal(size=logits[ignored].shape)
    other_value, other_gradient = compiled(name)(logits, labels)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(gradient[ignored], 0)

  @parameterized.parameters(*LOSSES)
  def test_bfloat16_logits_are_computed_in_float32(self, name):
    logits, labels = example()
    logits = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = compiled(name)(logits, labels)
    self.assertEqual(value.dtype, jnp.float32)
    self.assertEqual(gradient.dtype, jnp.bfloat16)
    expected, _ = compiled(name)(logits.astype(jnp.float32), labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)

  @parameterized.parameters(*LOSSES)
  def test_is_finite_for_sure_and_wrong_predictions(self, name):
    _, labels = example()
    sure = 200 * (labels[..., None] == np.arange(4)).astype(np.float32)
    for logits in (sure, -sure, np.zeros_like(sure)):
      value, gradient = compiled(name)(logits, labels)
      self.assertTrue(np.isfinite(value))
      self.assertTrue(np.isfinite(gradient).all())

  @parameterized.product(
    oracle=((focal_by_loop, 'focal'), (dice_by_loop, 'dice'), (lovasz_by_loop, 'lovasz')),
    absent=((), (0, 3)),
  )
  def test_equals_loop_in_value_and_gradient(self, oracle, absent):
    by_loop, name = oracle
    logits, labels = example(absent=absent)
    value, gradient = compiled(name)(logits, labels)
    np.testing.assert_allclose(value, by_loop(logits, labels), rtol=1e-5)
    expected = numerical_gradient(lambda x: by_loop(x, labels), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)

  @parameterized.parameters(
    (focal_by_loop, 'focal'), (dice_by_loop, 'dice'), (lovasz_by_loop, 'lovasz')
  )
  def test_equals_loop_on_a_single_pixel(self, by_loop, name):
    logits, labels = example((1, 1, 1), ignored=0)
    np.testing.assert_allclose(
      compiled(name)(logits, labels)[0], by_loop(logits, labels), rtol=1e-5
    )


class PixelWeightsTest(LossTest):
  def test_are_class_weights_and_zero_where_ignored(self):
    labels = jnp.array([[[0, 1], [255, 2]]])
    weights = np.array([0.5, 2, 0], np.float32)
    np.testing.assert_array_equal(losses.pixel_weights(labels), [[[1, 1], [0, 1]]])
    np.testing.assert_array_equal(losses.pixel_weights(labels, weights), [[[0.5, 2], [0, 0]]])


class CrossEntropyTest(LossTest):
  @parameterized.product(
    smoothing=(0.0, 0.3), weights=(None, CLASS_WEIGHTS), shape=((2, 3, 5), (1, 1, 3))
  )
  @needs_torch
  def test_equals_pytorch(self, smoothing, weights, shape):
    logits, labels = example(shape, absent=[2])
    value, gradient = value_and_gradient(
      logits, labels, class_weights=weights, label_smoothing=smoothing
    )
    expected, expected_gradient = torch_cross_entropy(logits, labels, weights, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


class HardPixelTest(LossTest):
  @parameterized.parameters(0.01, 0.5, 0.97)
  @needs_torch
  def test_is_the_mean_of_the_costliest_valid_pixels(self, fraction):
    logits, labels = example((2, 6, 9), ignored=0.5)
    costs, _ = torch_cross_entropy(logits, labels, CLASS_WEIGHTS, 0.1, reduction='none')
    valid = labels != 255
    costs, weights = costs[valid], CLASS_WEIGHTS[labels[valid]]
    keep = np.argsort(-costs)[: max(1, round(fraction * len(costs)))]

    value, gradient = value_and_gradient(
      logits,
      labels,
      class_weights=CLASS_WEIGHTS,
      label_smoothing=0.1,
      hard_pixel_fraction=fraction,
    )
    np.testing.assert_allclose(value, costs[keep].sum() / weights[keep].sum(), rtol=1e-5)
    self.assertEqual(np.any(gradient != 0, axis=-1).sum(), len(keep))

  def test_pixels_that_tie_with_the_last_are_kept(self):
    logits = np.zeros((1, 1, 8, 2), np.float32)
    logits[0, 0, :3, 0] = -2  # the three hardest, all equal
    labels = np.zeros((1, 1, 8), np.int32)
    value, gradient = value_and_gradient(logits, labels, hard_pixel_fraction=0.25)
    np.testing.assert_allclose(value, math.log(1 + math.exp(2)), rtol=1e-6)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1)[0, 0], [1, 1, 1, 0, 0, 0, 0, 0])

  def test_pixels_that_cost_nothing_are_not_taken_for_ignored(self):
    logits = np.zeros((1, 1, 4, 2), np.float32)
    logits[0, 0, :3, 0] = 200  # two cost nothing and tie, one is ignored, the last costs log 2
    labels = np.array([[[0, 0, 255, 0]]], np.int32)
    value, _ = value_and_gradient(logits, labels, hard_pixel_fraction=0.67)
    np.testing.assert_allclose(value, math.log(2) / 3, rtol=1e-6)


class FocalTest(LossTest):
  @parameterized.parameters(0, 0.0)
  def test_equals_cross_entropy_at_gamma_zero(self, gamma):
    logits, labels = example()
    logits[0, 0, 0] = [100, 0, 0, 0]
    focal = functools.partial(losses.focal, gamma=gamma)
    value, gradient = jax.jit(jax.value_and_grad(focal))(logits, labels)
    expected_value, expected_gradient = compiled('cross_entropy')(logits, labels)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)

  @parameterized.parameters(0.0, 0.1, 0.5, 1.0, 2.0)
  def test_gradient_is_finite_at_probability_one(self, gamma):
    logits = np.array([[[[200, 0, 0]]]], np.float32)
    labels = np.array([[[0]]], np.int32)
    gradient = jax.jit(jax.grad(functools.partial(losses.focal, gamma=gamma)))(logits, labels)
    np.testing.assert_array_equal(gradient, 0)


class DiceTest(LossTest):
  def test_is_zero_for_a_perfect_and_one_for_a_disjoint_prediction(self):
    labels = np.array([[[0, 1, 255]]], np.int32)
    logits = np.float32([[[[99, -99], [-99, 99], [0, 0]]]])
    dice = jax.jit(losses.dice)
    np.testing.assert_allclose(dice(logits, labels), 0, atol=1e-6)
    np.testing.assert_allclose(dice(-logits, labels), 1, atol=1e-6)


class LovaszTest(LossTest):
  def test_is_the_jaccard_loss_of_a_sure_prediction(self):
    """The Lovász extension is the set function itself on the corners of the unit cube."""
    _, labels = example()
    predicted = np.random.default_rng(1).integers(0, 4, labels.shape)
    logits = 200 * (predicted[..., None] == np.arange(4)).astype(np.float32)
    valid = labels != 255
    jaccard = [
      np.sum((labels == c) & (predicted == c)) / np.sum(valid & ((labels == c) | (predicted == c)))
      for c in range(4)
    ]
    value, _ = compiled('lovasz')(logits, labels)
    np.testing.assert_allclose(value, 1 - np.mean(jaccard), rtol=1e-6)


class CombineTest(LossTest):
  def test_is_the_weighted_sum_of_the_terms_asked_for(self):
    logits, labels = example()
    config = common.get_config('coco').loss
    config.update(cross_entropy=0.5, dice=2.0, focal=3.0, lovasz=4.0)
    config.update(focal_gamma=1.5, label_smoothing=0.1, hard_pixel_fraction=0.5)
    combine = jax.jit(functools.partial(losses.combine, loss_config=config))
    total, values = combine(logits, labels, class_weights=CLASS_WEIGHTS)
    terms = dict(cross_entropy='hard_pixels', dice='dice', focal='focal', lovasz='lovasz')
    expected = {name: compiled(term)(logits, labels)[0] for name, term in terms.items()}
    self.assertEqual(values.keys(), expected.keys())
    for name, value in values.items():
      np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    np.testing.assert_allclose(total, sum(config[k] * v for k, v in expected.items()), rtol=1e-6)

  def test_leaves_out_terms_of_weight_zero(self):
    logits, labels = example()
    total, values = losses.combine(logits, labels, common.get_config('coco').loss)
    self.assertEqual(list(values), ['cross_entropy'])
    self.assertEqual(total, values['cross_entropy'])

  @parameterized.parameters(
    (dict(cross_entropy=0.0), 'config.loss: expected a weight above 0'),
    (dict(hard_pixel_fraction=0.0), 'config.loss.hard_pixel_fraction: .* got 0.0'),
    (dict(hard_pixel_fraction=1.5), 'config.loss.hard_pixel_fraction: .* got 1.5'),
    (dict(class_weights='ent'), "config.loss.class_weights: unknown 'ent'.*'enet'"),
  )
  def test_refuses_a_config_that_cannot_be(self, change, message):
    config = common.get_config('coco').loss
    config.update(change)
    with self.assertRaisesRegex(UserError, message):
      losses.combine(*example(), config)


class ClassWeightsTest(parameterized.TestCase):
  def test_none(self):
    self.assertIsNone(losses.class_weights('none', np.array([1, 2]), np.array([3, 3])))

  def test_median_frequency_by_hand(self):
    # Frequencies 0.8, 0.2 and 0.1; the fourth class does not occur.
    weights = losses.class_weights(
      'median_frequency', np.array([80, 10, 10, 0]), np.array([100, 50, 100, 0])
    )
    np.testing.assert_allclose(weights, [0.25, 1, 2, 0], rtol=1e-6)
    self.assertEqual(weights.dtype, np.float32)

  def test_enet_by_hand(self):
    weights = losses.class_weights('enet', np.array([75, 25, 0]), np.array([100, 100, 0]))
    expected = [1 / math.log(1.77), 1 / math.log(1.27), 1 / math.log(1.02)]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    self.assertEqual(weights.dtype, np.float32)

  @parameterized.parameters('median_frequency', 'enet')
  def test_are_finite_for_a_split_without_labels(self, name):
    weights = losses.class_weights(name, np.zeros(3, np.int64), np.zeros(3, np.int64))
    self.assertTrue(np.isfinite(weights).all())

  def test_unknown_name(self):
    with self.assertRaisesRegex(UserError, "unknown 'median'; did you mean 'median_frequency'"):
      losses.class_weights('median', np.array([1]), np.array([1]))


if __name__ == '__main__':
  absltest.main()
