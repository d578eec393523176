"""Objects and stuff in one map: how Panoptic FPN merges its two branches.

Kirillov, Girshick, He and Dollar, CVPR 2019 (https://arxiv.org/abs/1901.02446), section 3, take it
from Kirillov et al., Panoptic Segmentation, 2019 (https://arxiv.org/abs/1801.00868), section 7. Its
comparisons are those of the authors' `combine_semantic_and_instance_predictions.py`.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def merge(
  masks: Bool[Array, 'D H W'],
  scores: Float[Array, ' D'],
  found: Bool[Array, ' D'],
  stuff: Int[Array, 'H W'],
  num_stuff: int,
  score_threshold: float = 0.5,
  overlap: float = 0.5,
  min_stuff_area: int = 64 * 64,
) -> Int[Array, 'H W']:
  """The segments of one picture: each pixel is of one detection, of one kind of stuff, or void.

  Args:
    masks: of the detections, the best first; each takes what those before it have left.
    found: which of them there are.
    stuff: 0 where there is some thing, k where there is the k-th kind of stuff, from 1. It takes
      what the detections have left.
    score_threshold: a detection goes if its score is below.
    overlap: a detection goes if more than this share of its mask is taken.
    min_stuff_area: pixels; what is left of a kind of stuff is void if there are fewer.

  Returns:
    int32: 0 for void, k for the k-th detection, from 1, D + k for the k-th kind of stuff.
  """
  candidates = found & (scores >= score_threshold)

  def add(k, segments):
    free = masks[k] & (segments == 0)
    area = jnp.sum(masks[k])
    taken = (area - jnp.sum(free)) / jnp.maximum(area, 1)
    return jnp.where(free & candidates[k] & (taken <= overlap), k + 1, segments)

  count = len(masks)
  end = jnp.max(jnp.where(candidates, jnp.arange(1, count + 1, dtype=jnp.int32), 0))
  segments = lax.fori_loop(0, end, add, jnp.zeros(stuff.shape, jnp.int32))
  stuff = jnp.where(segments == 0, stuff, 0)
  areas = jnp.bincount(stuff.ravel(), length=num_stuff + 1)
  large = (areas >= min_stuff_area).at[0].set(False)
  return jnp.where(large[stuff], count + stuff, segments)
