"""Scores of semantic segmentation, from integer counts over the whole split.

Three phases: `count` runs on the device, in int32, for one batch; `merge` adds its counts to the
state on the host, in int64, because int32 overflows on large splits; `result` divides, once.
Ignored pixels (label 255) and padded images are in no count, as truth or as prediction.
"""

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax import IGNORE
from seg_jax.metrics import boundary

IGNORED_PIXELS = (
  'Pixels labelled 255 are left out: they count neither as truth nor as prediction of any class.'
)


def empty(num_classes: int) -> dict[str, np.ndarray]:
  """The state before the first batch; all int64.

  `confusion` [C, C] are pixels by truth (row) and prediction (column), `top5` [C] are those of each
  true class that is among the five likeliest, `boundary` [3, C] are the pixels of
  `boundary.count`, `images` is how many images were seen.
  """
  return {
    'confusion': np.zeros((num_classes, num_classes), np.int64),
    'top5': np.zeros(num_classes, np.int64),
    'boundary': np.zeros((3, num_classes), np.int64),
    'images': np.zeros((), np.int64),
  }


def count(
  predicted_labels: jax.Array,
  labels: jax.Array,
  valid: jax.Array,
  in_top5: jax.Array | None = None,
  *,
  num_classes: int,
) -> dict[str, jax.Array]:
  """The counts of one batch, int32, with the names and shapes of `empty`; jit-able.

  `predicted_labels` int [N, H, W] are classes, `labels` int [N, H, W] classes or 255, `valid` bool
  [N] is False for padding, `in_top5` bool [N, H, W] comes from `in_top_k`; it may be None up to
  five classes, where every class is among them. A batch must stay under 2^31 pixels. Raises
  ValueError if `in_top5` is missing.
  """
  if in_top5 is None:
    if num_classes > 5:
      raise ValueError(f'in_top5 is needed with {num_classes} classes')
    in_top5 = jnp.ones(labels.shape, bool)
  predicted_labels, labels = predicted_labels.astype(jnp.int32), labels.astype(jnp.int32)
  counted = (labels != IGNORE) & valid[:, None, None]
  pairs = _histogram(labels * num_classes + predicted_labels, counted, num_classes**2)
  return {
    'confusion': pairs.reshape(num_classes, num_classes),
    'top5': _histogram(labels, counted & in_top5, num_classes),
    'boundary': boundary.count(predicted_labels, jnp.where(counted, labels, IGNORE), num_classes),
    'images': jnp.sum(valid, dtype=jnp.int32),
  }


def merge(state: dict, counts: dict) -> dict[str, np.ndarray]:
  """`state` and `counts` together, on the host in the 64 bits of `state`; neither is changed."""
  return {name: np.add(total, counts[name], dtype=total.dtype) for name, total in state.items()}


def in_top_k(logits: jax.Array, labels: jax.Array, k: int = 5) -> jax.Array:
  """Whether each pixel's class has one of the `k` largest logits; False where ignored.

  `logits` [N, H, W, C], `labels` int [N, H, W] -> bool [N, H, W]. Of equal logits the lower class
  comes first, as in `jax.lax.top_k`; nothing is sorted.
  """
  valid = labels != IGNORE
  label = jnp.where(valid, labels, 0)[..., None]
  true = jnp.take_along_axis(logits, label, axis=-1)
  lower_class = jnp.arange(logits.shape[-1], dtype=label.dtype).reshape(1, 1, 1, -1) < label
  ahead = jnp.sum((logits > true) | ((logits == true) & lower_class), axis=-1, dtype=jnp.int32)
  return valid & (ahead < k)


def result(state: dict, class_names) -> dict:
  """The scores in [0, 1] of the whole split, as written to `eval/SPLIT.json`.

  With TP, FP and FN a class's pixels: `iou` = TP / (TP + FP + FN), `dice` = 2 TP / (2 TP + FP +
  FN), `cosine` (Ochiai) = TP / sqrt((TP + FP)(TP + FN)), `accuracy` = TP / (TP + FN);
  `boundary_iou` is the IoU near outlines. What a class cannot have is None and is not averaged: all
  five if it is in neither labels nor predictions, `accuracy` alone if it is only predicted (the
  others are then 0, and are averaged). The means are None if nothing is labelled.
  """
  confusion = state['confusion']
  hits = np.diag(confusion).astype(np.float64)
  truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  either = truth + predicted - hits
  total = truth.sum()

  iou = _divide(hits, either)
  dice = _divide(2 * hits, truth + predicted)
  # A class in only one of labels and predictions scores 0, not 0 / 0; one in neither stays 0 / 0.
  product = truth.astype(np.float64) * predicted
  cosine = _divide(hits, np.where(either > 0, np.sqrt(np.maximum(product, 1)), 0))
  accuracy = _divide(hits, truth)
  near, true_band, predicted_band = state['boundary']
  boundary_iou = _divide(near, true_band + predicted_band - near)

  scores = {
    'miou': _mean(iou),
    'boundary_iou': _mean(boundary_iou),
    'pixel_accuracy': _number(_divide(hits.sum(), total)),
    'mean_accuracy': _mean(accuracy),
    'frequency_weighted_iou': _number(_divide(np.nansum(truth * iou), total)),
    'mean_dice': _mean(dice),
    'mean_cosine': _mean(cosine),
  }
  if len(confusion) > 5:
    scores['top5_accuracy'] = _number(_divide(state['top5'].sum(), total))
  top5 = _divide(state['top5'], truth)
  columns = zip(class_names, iou, boundary_iou, dice, cosine, accuracy, truth, strict=True)
  scores['per_class'] = {
    name: {
      'iou': _number(i),
      'boundary_iou': _number(b),
      'dice': _number(d),
      'cosine': _number(c),
      'accuracy': _number(a),
      'pixels': int(pixels),
    }
    for name, i, b, d, c, a, pixels in columns
  }
  if len(confusion) > 5:
    for scores_of_class, share in zip(scores['per_class'].values(), top5, strict=True):
      scores_of_class['top5_accuracy'] = _number(share)
  return scores | {'num_images': int(state['images']), 'ignored_pixels': IGNORED_PIXELS}


def table(result: dict) -> str:
  """The scores of `result` as aligned text in percent, one class a line, the means last."""
  classes = result['per_class']
  total = sum(scores['pixels'] for scores in classes.values())
  rows = [('class', 'IoU', 'Dice', 'accuracy', 'pixels')]
  for name, scores in classes.items():
    share = scores['pixels'] / total if total else None
    numbers = (scores['iou'], scores['dice'], scores['accuracy'], share)
    rows.append((name, *map(_percent, numbers)))
  means = (result['miou'], result['mean_dice'], result['mean_accuracy'])
  rows.append(('mean', *map(_percent, means), ''))

  width = max(len(row[0]) for row in rows)
  lines = [row[0].ljust(width) + ''.join(f'{cell:>10}' for cell in row[1:]) for row in rows]
  rule = '-' * len(lines[0])
  lines = [lines[0], rule, *lines[1:-1], rule, lines[-1].rstrip()]
  lines.append(
    f'pixel accuracy {_percent(result["pixel_accuracy"])}, boundary IoU '
    f'{_percent(result["boundary_iou"])}, {result["num_images"]} images'
  )
  return '\n'.join(lines)


def _histogram(index: jax.Array, counted: jax.Array, length: int) -> jax.Array:
  """How often each of 0 to `length` - 1 stands in `index` where `counted`; int32 [length]."""
  overflow_bin = length
  index = jnp.where(counted, index, overflow_bin).ravel()
  return jnp.bincount(index, length=length + 1)[:length]


def _divide(numerator, denominator):
  """The quotient in float64, NaN where `denominator` is 0."""
  return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean(values: np.ndarray) -> float | None:
  """Mean of those that are not NaN."""
  known = values[~np.isnan(values)]
  return float(known.mean()) if len(known) else None


def _number(value) -> float | None:
  return None if np.isnan(value) else float(value)


def _percent(value: float | None) -> str:
  return '-' if value is None else f'{100 * value:.2f}'
