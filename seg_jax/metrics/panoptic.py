"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4).

A predicted and a true segment of a class match if their IoU is above 0.5, so none has two matches.
Of each class, with TP the matches, FP and FN the segments without one,

    PQ = sum of the matches' IoU / (TP + FP / 2 + FN / 2) = SQ * RQ,

segmentation quality, the mean IoU of the matches, times recognition quality, an F1 score.

What is void in truth is in no union, and a crowd is neither matched nor missed; a prediction that
lies for more than half in the void and in crowds of its class is no mistake. All this as in the
authors' panopticapi, but that of several crowds of a class in a picture it sees the last one only.

`shared` and `count` run on the device, for one picture; the counts of all are added up in the 64
bits of `empty`, on the host; `result` divides, once.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

KINDS = ('', '_things', '_stuff')  # of classes that measures are averaged over


def empty(num_classes: int) -> dict[str, np.ndarray]:
  """The counts of no picture yet, [C]: `iou` is the sum of the matches' IoU."""
  whole = {name: np.zeros(num_classes, np.int64) for name in ('tp', 'fp', 'fn')}
  return {'iou': np.zeros(num_classes, np.float64)} | whole


def shared(
  predicted: Int[Array, 'H W'],
  truth: Int[Array, 'H W'],
  num_predicted: int,
  num_true: int,
  counted: Bool[Array, 'H W'] | None = None,
) -> Int[Array, 'P+1 T+1']:
  """Pixels of each predicted segment in each true one, int32; row and column 0 are the void.

  The maps hold 0 to P = `num_predicted` and 0 to T = `num_true`. A pixel that is not `counted`,
  such as padding, is nowhere.
  """
  rows, columns = num_predicted + 1, num_true + 1
  pairs = predicted * columns + truth
  if counted is not None:
    pairs = jnp.where(counted, pairs, rows * columns)  # what is beyond the length is dropped
  return jnp.bincount(pairs.ravel(), length=rows * columns).reshape(rows, columns)


def count(
  shared: Int[Array, 'P+1 T+1'],
  classes: Int[Array, ' P'],
  truth_classes: Int[Array, ' T'],
  is_crowd: Bool[Array, ' T'],
  num_classes: int,
) -> dict[str, Float[Array, ' C'] | Int[Array, ' C']]:
  """The counts of one picture, with the names and shapes of `empty`; float32 and int32.

  `shared` is what the function of that name gives. Segments without a pixel are none, whatever
  their class.
  """
  areas, truth_areas = jnp.sum(shared, 1)[1:], jnp.sum(shared, 0)[1:]
  void, shared = shared[1:, 0], shared[1:, 1:]
  same = classes[:, None] == truth_classes[None]
  union = (areas - void)[:, None] + truth_areas[None] - shared
  matches = same & ~is_crowd[None] & (2 * shared > union)
  iou = jnp.where(matches, shared / jnp.maximum(union, 1), 0)
  ignored = void + jnp.sum(jnp.where(same & is_crowd[None], shared, 0), 1)
  found = jnp.any(matches, 0)
  false = (areas > 0) & ~jnp.any(matches, 1) & (2 * ignored <= areas)
  missed = (truth_areas > 0) & ~found & ~is_crowd

  def of_class(values, classes):
    return jax.ops.segment_sum(values, classes, num_classes)

  return {
    'iou': of_class(jnp.sum(iou, 0), truth_classes),
    'tp': of_class(found.astype(jnp.int32), truth_classes),
    'fp': of_class(false.astype(jnp.int32), classes),
    'fn': of_class(missed.astype(jnp.int32), truth_classes),
  }


def result(
  counts: Mapping[str, np.ndarray], class_names: Sequence[str], things: Sequence[int]
) -> dict:
  """The measures in [0, 1] of the sum of all pictures' `counts`.

  Returns:
    `pq`, `sq` and `rq`, means over the classes; with `_things` and `_stuff` behind, over those
    among `things` and over the others; and below `per_class` the three of each. A class that is
    neither there nor predicted has None, and is in no mean; a mean of nothing is None.
  """
  iou, tp, fp, fn = (counts[name].astype(np.float64) for name in ('iou', 'tp', 'fp', 'fn'))
  segments = tp + 0.5 * fp + 0.5 * fn
  known, is_thing = segments > 0, np.isin(np.arange(len(tp)), list(things))
  chosen = dict(zip(KINDS, (known, known & is_thing, known & ~is_thing), strict=True))
  # Of a class without a match all three are 0, as of one that is nowhere, which is in no mean.
  divisors = {'pq': np.maximum(segments, 0.5), 'sq': np.maximum(tp, 1)}
  values = {name: iou / divisor for name, divisor in divisors.items()}
  values['rq'] = tp / divisors['pq']
  means = {
    f'{name}{kind}': float(of_class[which].mean()) if which.any() else None
    for kind, which in chosen.items()
    for name, of_class in values.items()
  }
  per_class = {
    class_name: {name: float(values[name][k]) if known[k] else None for name in values}
    for k, class_name in enumerate(class_names)
  }
  return means | {'per_class': per_class}


def table(result: Mapping) -> str:
  """PQ, SQ and RQ in percent of every class, and their means, for the terminal."""

  def row(title, values):
    return f'{title:<{width}}' + ''.join(
      f'{"-":>10}' if value is None else f'{100 * value:>10.2f}' for value in values
    )

  names = ('pq', 'sq', 'rq')
  width = max(6, *map(len, result['per_class']))
  rule = '-' * (width + 10 * len(names))
  lines = [' ' * width + ''.join(f'{name.upper():>10}' for name in names), rule]
  lines += [row(title, scores.values()) for title, scores in result['per_class'].items()]
  lines.append(rule)
  for title, kind in zip(('mean', 'things', 'stuff'), KINDS, strict=True):
    lines.append(row(title, [result[name + kind] for name in names]))
  return '\n'.join([*lines, f'{result["num_images"]} images'])
