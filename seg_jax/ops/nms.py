"""Non-maximum suppression in static shapes, for any number of pictures and classes at once.

Going through the boxes from the best score to the worst, one is kept unless a kept one overlaps it
too much. That is the solution of a triangular system: box i is kept if no j < i is kept and
overlaps it. Whatever is assumed at first, after k rounds of applying that rule to all boxes at once
those whose fate hangs on fewer than k others are settled, so the rounds end after the longest chain
of boxes that suppress each other, with exactly what one after the other gives.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from seg_jax.ops import boxes as box_ops


def nms(
  boxes: Float[Array, '... K 4'],
  scores: Float[Array, '... K'],
  valid: Bool[Array, '... K'],
  threshold: float,
  groups: Int[Array, '... K'] | None = None,
) -> Bool[Array, '... K']:
  """Which boxes stay, of those that are `valid`.

  Args:
    threshold: a box goes if its IoU with a better one that stays is above it. Of equal scores the
      first counts as better.
    groups: boxes of different groups, such as classes, leave each other alone.
  """
  order = jnp.argsort(-scores, axis=-1, stable=True)
  ranked = jnp.take_along_axis(boxes, order[..., None], -2)
  count = scores.shape[-1]
  overlaps = box_ops.iou(ranked, ranked) > threshold
  if groups is not None:
    groups = jnp.take_along_axis(groups, order, -1)
    overlaps &= groups[..., :, None] == groups[..., None, :]
  better = jnp.arange(count)[:, None] < jnp.arange(count)[None]
  kept = kept_in_order(
    overlaps & better.reshape((1,) * (overlaps.ndim - 2) + better.shape),
    jnp.take_along_axis(valid, order, -1),
  )
  return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), -1)


def kept_in_order(
  suppresses: Bool[Array, '... K K'], valid: Bool[Array, '... K']
) -> Bool[Array, '... K']:
  """Which stay where row i, if it stays, drives out the columns j > i that are true in it."""

  def settle(state):
    kept, _ = state
    again = valid & ~jnp.any(suppresses & kept[..., :, None], -2)
    return again, jnp.any(again != kept)

  kept, _ = lax.while_loop(lambda state: state[1], settle, (valid, jnp.array(True)))
  return kept


def best(scores: Float[Array, '... K'], valid: Bool[Array, '... K'], count: int):
  """Positions of the `count` best valid ones, the best first, and which of them there are.

  Returns:
    int32 and bool [..., count]; there may be fewer valid ones, or fewer at all.
  """
  ranked = jnp.where(valid, scores, -jnp.inf)
  if (missing := count - scores.shape[-1]) > 0:
    padding = ((0, 0),) * (scores.ndim - 1) + ((0, missing),)
    ranked = jnp.pad(ranked, padding, constant_values=-jnp.inf)
  values, positions = jax.lax.top_k(ranked, count)
  found = values > -jnp.inf
  return jnp.where(found, positions, 0), found
