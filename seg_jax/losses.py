"""Losses of semantic segmentation: functions of logits and labels.

Everywhere `logits` is [N, H, W, C] of any float dtype (the work is done in float32) and `labels` is
int [N, H, W] with classes 0 to C - 1, and 255 where a pixel is ignored. Every loss is one float32
scalar over the whole batch, on all devices. Ignored pixels change neither a loss nor its gradient;
where nothing is labelled, both are 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax import IGNORE
from seg_jax.errors import UserError, nearest
from seg_jax.ops import devices, one_hot

TERMS = ('cross_entropy', 'dice', 'focal', 'lovasz')
WEIGHTINGS = ('none', 'median_frequency', 'enet')


def pixel_weights(labels: jax.Array, class_weights: jax.Array | None = None) -> jax.Array:
  """What each pixel counts: 0 if ignored, else the weight of its class, or 1; float32 [N, H, W]."""
  valid = labels != IGNORE
  if class_weights is None:
    return valid.astype(jnp.float32)
  weights = jnp.asarray(class_weights, jnp.float32)
  return jnp.where(valid, weights[jnp.where(valid, labels, 0)], 0)


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  *,
  class_weights: jax.Array | None = None,
  label_smoothing: float = 0.0,
  hard_pixel_fraction: float = 1.0,
) -> jax.Array:
  """Cross entropy, averaged as PyTorch's `F.cross_entropy(..., ignore_index=255)` averages it.

  With s = `label_smoothing` and w = `class_weights` (float [C]; 1 if None), a pixel of class y
  costs -(1 - s) w[y] log p[y] - s / C sum_c w[c] log p[c], and the sum over pixels is divided by
  the sum of w[y].

  With `hard_pixel_fraction` f < 1 both sums run over the hardest pixels alone (online hard pixel
  mining): of the V pixels of the batch that are not ignored, the max(1, round(f V)) that cost most,
  and every pixel that costs exactly as much as the last of them.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  weights = pixel_weights(labels, class_weights)
  costs = -weights * _at_label(log_probs, labels)
  if label_smoothing:
    if class_weights is not None:
      log_probs *= jnp.asarray(class_weights, jnp.float32).reshape(1, 1, 1, -1)
    spread = jnp.where(labels == IGNORE, 0, -jnp.mean(log_probs, axis=-1))
    costs = (1 - label_smoothing) * costs + label_smoothing * spread
  if hard_pixel_fraction < 1:
    hard = _hardest(costs, labels != IGNORE, hard_pixel_fraction)
    costs, weights = jnp.where(hard, costs, 0), jnp.where(hard, weights, 0)
  return quotient(devices.pixel_sum(costs), devices.pixel_sum(weights))


def focal(
  logits: jax.Array,
  labels: jax.Array,
  *,
  gamma: float,
  class_weights: jax.Array | None = None,
) -> jax.Array:
  """Focal loss in its softmax form (Lin et al. 2017, equation 5): cross entropy at `gamma` 0.

  A pixel of class y costs -w[y] (1 - p[y])^gamma log p[y], and the sum over pixels is divided by
  the sum of w[y].
  """
  weights = pixel_weights(labels, class_weights)
  log_prob = _at_label(jax.nn.log_softmax(logits.astype(jnp.float32)), labels)
  # 1 - p without cancellation, and above 0, where the gradient of a power below 1 is infinite.
  miss = jnp.maximum(-jnp.expm1(log_prob), jnp.finfo(jnp.float32).tiny)
  return quotient(devices.pixel_sum(-weights * miss**gamma * log_prob), devices.pixel_sum(weights))


def dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Soft Dice loss (Milletari et al. 2016, section 3), over the classes that the labels hold.

  1 - mean_c 2 sum(p g) / (sum(p^2) + sum(g^2)), where p is a class's probability and g is 1 on its
  pixels and 0 elsewhere; the sums run over all labelled pixels of the batch. No smoothing constant:
  with only the classes that occur, sum(g^2) is at least 1.
  """
  truth = one_hot.encode(labels, logits.shape[-1], bool)
  probs = jax.nn.softmax(logits.astype(jnp.float32))
  probs = jnp.where((labels != IGNORE)[..., None], probs, 0)
  pixels = devices.pixel_sum(truth.astype(jnp.float32))
  overlap = devices.pixel_sum(jnp.where(truth, probs, 0))
  total = devices.pixel_sum(probs**2) + pixels
  return _mean_over_present(1 - 2 * quotient(overlap, total), pixels > 0)


def lovasz_softmax(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Lovász-softmax (Berman et al. 2018), over the batch and the classes that its labels hold.

  For each class the pixels are sorted by their error, |g - p|, largest first. The loss is the inner
  product of the errors with what each pixel, added to the misclassified ones before it, adds to the
  Jaccard loss 1 - I / U.
  """
  num_classes = logits.shape[-1]
  logits, labels = devices.whole_batch(logits), devices.whole_batch(labels)  # sorted as one
  probs = jax.nn.softmax(logits.astype(jnp.float32)).reshape(-1, num_classes).T  # [C, pixels]
  inside = one_hot.encode(labels, num_classes, bool).reshape(-1, num_classes).T
  outside = ~inside & (labels != IGNORE).reshape(1, -1)  # an ignored pixel is neither
  errors = jnp.where(inside, 1 - probs, probs)

  negated, inside, outside = jax.lax.sort((-errors, inside, outside), num_keys=1)
  pixels = jnp.sum(inside, axis=-1, dtype=jnp.int32, keepdims=True)
  intersection = pixels - jnp.cumsum(inside, axis=-1, dtype=jnp.int32)
  union = pixels + jnp.cumsum(outside, axis=-1, dtype=jnp.int32)
  # The differences of 1 - I / U in closed form: subtracting neighbours would leave rounding alone
  # where there are millions of pixels. A pixel inside takes 1 from I, one outside adds 1 to U.
  intersection, union = intersection.astype(jnp.float32), union.astype(jnp.float32)
  increments = jnp.where(inside, 1 / jnp.maximum(union, 1), 0)
  increments += jnp.where(outside, intersection / jnp.maximum(union * (union - 1), 1), 0)
  losses = jnp.sum(-negated * increments, axis=-1)
  return _mean_over_present(losses, pixels[:, 0] > 0)


def combine(
  logits: jax.Array, labels: jax.Array, loss_config, class_weights: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of the terms in `config.loss`, and the value of each before its weight.

  Terms of weight 0 are neither computed nor named. `class_weights` (float [C]) is used in cross
  entropy and focal loss. Raises `UserError` as `check` does.
  """
  check(loss_config)
  terms = {
    'cross_entropy': lambda: cross_entropy(
      logits,
      labels,
      class_weights=class_weights,
      label_smoothing=loss_config.label_smoothing,
      hard_pixel_fraction=loss_config.hard_pixel_fraction,
    ),
    'dice': lambda: dice(logits, labels),
    'focal': lambda: focal(
      logits, labels, gamma=loss_config.focal_gamma, class_weights=class_weights
    ),
    'lovasz': lambda: lovasz_softmax(logits, labels),
  }
  values = {name: terms[name]() for name in TERMS if loss_config[name]}
  return sum(loss_config[name] * value for name, value in values.items()), values


def check(loss_config) -> None:
  """Raises `UserError` if `config.loss` asks for nothing, or for what cannot be."""
  if not any(loss_config[name] for name in TERMS):
    raise UserError(f'config.loss: expected a weight above 0 for one of {", ".join(TERMS)}')
  if not 0 < loss_config.hard_pixel_fraction <= 1:
    given = loss_config.hard_pixel_fraction
    raise UserError(f'config.loss.hard_pixel_fraction: expected above 0 and at most 1, got {given}')
  _check_weighting(loss_config.class_weights)


def class_weights(
  name: str, class_pixels: np.ndarray, image_pixels: np.ndarray
) -> np.ndarray | None:
  """Weights against class imbalance, from the pixel counts of a split; float32 [C], or None.

  `class_pixels` int64 [C] are the labelled pixels of each class; `image_pixels` int64 [C] are the
  labelled pixels, of any class, of the images that hold the class.

  - `none`: None.
  - `median_frequency` (Eigen and Fergus 2015): with freq(c) = class_pixels[c] /
    image_pixels[c], median(freq) / freq(c). The median is over the classes that occur; a class that
    does not gets weight 0.
  - `enet` (Paszke et al. 2016): 1 / ln(1.02 + p(c)), where p(c) is the class's share
    of all labelled pixels. A class that does not occur gets the largest weight, 50.5.

  Raises `UserError` for another name.
  """
  _check_weighting(name)
  if name == 'none':
    return None
  if name == 'enet':
    share = class_pixels / max(class_pixels.sum(), 1)
    return (1 / np.log(1.02 + share)).astype(np.float32)
  occurs = class_pixels > 0
  weights = np.zeros(len(class_pixels), np.float32)
  if occurs.any():
    frequency = class_pixels[occurs] / image_pixels[occurs]
    weights[occurs] = np.median(frequency) / frequency
  return weights


def _check_weighting(name: str) -> None:
  if name not in WEIGHTINGS:
    raise UserError(f"config.loss.class_weights: unknown '{name}'{nearest(name, WEIGHTINGS)}")


def _at_label(values: jax.Array, labels: jax.Array) -> jax.Array:
  """`values` [N, H, W, C] at each pixel's class, 0 where ignored; [N, H, W].

  A select, not a gather, whose gradient would be a scatter: three times slower on a CPU.
  """
  return jnp.sum(jnp.where(one_hot.encode(labels, values.shape[-1], bool), values, 0), axis=-1)


def _hardest(costs: jax.Array, valid: jax.Array, fraction: float) -> jax.Array:
  """Where `costs` are among the largest `fraction` of the `valid` ones; bool.

  `costs` are at least 0, and 0 where not `valid`. The cost of the last pixel kept is found bit by
  bit, since floats from 0 up are ordered as their bits are: 31 counts cost a fiftieth of a sort,
  and only sums over pixels pass between devices.
  """
  count = devices.pixel_sum(valid.astype(jnp.int32)).astype(jnp.float32)
  keep = jnp.maximum(1, jnp.round(fraction * count).astype(jnp.int32))
  bits = jax.lax.bitcast_convert_type(jnp.abs(costs), jnp.int32)  # abs: -0.0 is 0.0

  def set_bit(i, threshold):
    higher = threshold | (1 << (30 - i))
    reached = devices.pixel_sum((bits >= higher).astype(jnp.int32))
    return jnp.where(reached >= keep, higher, threshold)

  return bits >= jax.lax.fori_loop(0, 31, set_bit, jnp.int32(0))


def quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """The quotient, and `numerator` itself where `denominator` is 0."""
  return numerator / jnp.where(denominator > 0, denominator, 1)


def _mean_over_present(losses: jax.Array, present: jax.Array) -> jax.Array:
  """Mean of `losses` [C] over the classes that are `present`; 0 if none is."""
  count = jnp.sum(present, dtype=jnp.float32)
  return jnp.sum(jnp.where(present, losses, 0)) / jnp.maximum(count, 1)
