"""Which anchor or box answers for which object, and which of them a step learns from.

Ren et al. 2015, Faster R-CNN, section 3.1.2 and 3.1.3, as torchvision does it: what overlaps no
object enough is background, what lies in between teaches nothing. Nor does what lies in a crowd,
which torchvision's own training leaves out of the truth, so that it is background there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from seg_jax.ops import boxes as box_ops


class Matches(NamedTuple):
  """For each of A boxes: the object that it overlaps most, and what follows."""

  objects: Int[Array, ' A']
  positive: Bool[Array, ' A']
  negative: Bool[Array, ' A']


def match(
  boxes: Float[Array, 'A 4'],
  truth: Float[Array, 'M 4'],
  valid: Bool[Array, ' M'],
  is_crowd: Bool[Array, ' M'],
  thresholds: tuple[float, float],
  best_of_each: bool = False,
) -> Matches:
  """Positive from the higher IoU of `thresholds` on, negative below the lower one.

  Args:
    valid: which of `truth` are there; crowds among them are no objects, but a box of which half
      lies in one is not negative.
    best_of_each: the boxes that overlap an object more than all others do are positive, too.
  """
  low, high = thresholds
  known, crowds = valid & ~is_crowd, valid & is_crowd
  overlaps = jnp.where(known[None], box_ops.iou(boxes, truth), -1)
  objects = jnp.argmax(overlaps, 1).astype(jnp.int32)
  largest = jnp.max(overlaps, 1)
  positive, negative = largest >= high, largest < low
  if best_of_each:
    best = jnp.max(overlaps, 0, keepdims=True)
    positive |= jnp.any((overlaps == best) & known[None] & (best > 0), 1)
  shares = box_ops.intersection(boxes, truth) / jnp.maximum(box_ops.area(boxes), 1e-6)[:, None]
  in_crowd = jnp.any((shares > 0.5) & crowds[None], 1)
  return Matches(objects, positive, negative & ~positive & ~in_crowd)


def sample(
  key: jax.Array, matches: Matches, count: int, positive_share: float
) -> tuple[Bool[Array, ' A'], Bool[Array, ' A']]:
  """Which positive and which negative ones are learned from, drawn at random.

  At most `positive_share` of `count` are positive, and negatives make up for what lacks.
  """
  rank = jax.random.permutation(key, len(matches.positive)).astype(jnp.int32)
  positive = _first(rank, matches.positive, int(count * positive_share))
  negative = _first(rank, matches.negative, count - jnp.sum(positive, dtype=jnp.int32))
  return positive, negative


def _first(rank, among, count):
  """Which of `among` are the `count` of lowest `rank`."""
  order = jnp.argsort(jnp.where(among, rank, len(rank)))
  place = jnp.zeros_like(rank).at[order].set(jnp.arange(len(rank), dtype=jnp.int32))
  return among & (place < count)
