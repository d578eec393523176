"""Boxes: y0, x0, y1, x1 in pixels, y1 and x1 one past the last; areas, overlaps, anchors, deltas.

The deltas between an anchor and a box are those of R-CNN (Girshick et al. 2014, appendix C): with
centres and sizes of the anchor a,

    t = ((x - x_a) / w_a, (y - y_a) / h_a, log(w / w_a), log(h / h_a))

in that order, which is the order of everybody's weights.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LARGEST_LOG = math.log(1000 / 16)  # of a size that is decoded: before training it may be anything


def area(boxes: Float[Array, '... 4']) -> Float[Array, '...']:
  """In pixels; 0 of a box that is turned inside out."""
  return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1)


def intersection(a: Float[Array, '... A 4'], b: Float[Array, '... B 4']) -> Float[Array, '... A B']:
  """Pixels that each of `a` shares with each of `b`."""
  a, b = a[..., :, None, :], b[..., None, :, :]
  top = jnp.maximum(a[..., :2], b[..., :2])
  bottom = jnp.minimum(a[..., 2:], b[..., 2:])
  return jnp.prod(jnp.maximum(bottom - top, 0), -1)


def iou(a: Float[Array, '... A 4'], b: Float[Array, '... B 4']) -> Float[Array, '... A B']:
  """Intersection over union of each of `a` with each of `b`; 0 where both are empty."""
  shared = intersection(a, b)
  union = area(a)[..., :, None] + area(b)[..., None, :] - shared
  return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def clip(boxes: Float[Array, '... 4'], limits: Float[Array, '#*N 4']) -> Float[Array, '... 4']:
  """The part of each box that lies in a picture; its `limits` are rows, columns, rows, columns."""
  return jnp.clip(boxes, 0, limits)


def encode(
  boxes: Float[Array, '... 4'],
  anchors: Float[Array, '... 4'],
  weights: tuple[float, float, float, float] = (1, 1, 1, 1),
) -> Float[Array, '... 4']:
  """The deltas that lead from `anchors` to `boxes`, times `weights`; 0 for an empty box."""
  (size, centre), (anchor_size, anchor_centre) = _sizes(boxes), _sizes(anchors)
  there = (size > 0).all(-1, keepdims=True)
  size = jnp.where(there, size, anchor_size)
  moves = jnp.where(there, (centre - anchor_centre) / anchor_size, 0)
  deltas = jnp.concatenate([moves[..., ::-1], jnp.log(size / anchor_size)[..., ::-1]], -1)
  return deltas * _like(weights, deltas)


def decode(
  deltas: Float[Array, '... 4'],
  anchors: Float[Array, '... 4'],
  weights: tuple[float, float, float, float] = (1, 1, 1, 1),
) -> Float[Array, '... 4']:
  """The boxes that `deltas` lead to: `encode` backwards, up to 62 times the anchor's size."""
  deltas = deltas / _like(weights, deltas)
  size, centre = _sizes(anchors)
  centre += deltas[..., 1::-1] * size
  size *= jnp.exp(jnp.minimum(deltas[..., :1:-1], LARGEST_LOG))
  return jnp.concatenate([centre - 0.5 * size, centre + 0.5 * size], -1)


def _like(four, boxes):
  """Four numbers for every box."""
  return jnp.array(four, boxes.dtype).reshape((1,) * (boxes.ndim - 1) + (4,))


def _sizes(boxes):
  """Height and width, and the centre, [..., 2] each."""
  size = boxes[..., 2:] - boxes[..., :2]
  return size, boxes[..., :2] + 0.5 * size


def anchors(
  map_size: tuple[int, int],
  strides: tuple[float, float],
  scales: Sequence[float],
  aspects: Sequence[float],
) -> np.ndarray:
  """One for each scale and aspect around the first corner of every cell of a map (Ren et al. 2015).

  Args:
    map_size: rows and columns of the map.
    strides: pixels of the picture from one row, and from one column, to the next.
    scales: the root of an anchor's area, in pixels of the picture.
    aspects: height over width.

  Returns:
    float32 [rows * columns * aspects * scales, 4]; sizes are whole numbers, as torchvision's.
  """
  tall = np.sqrt(np.asarray(aspects, np.float64))[:, None] * np.asarray(scales)
  wide = np.asarray(scales) / np.sqrt(np.asarray(aspects, np.float64))[:, None]
  half = np.stack([tall.ravel(), wide.ravel()], -1) / 2
  around = np.rint(np.concatenate([-half, half], -1)).astype(np.float32)
  cells = np.stack(np.meshgrid(*map(np.arange, map_size), indexing='ij'), -1)
  corners = cells.astype(np.float32) * np.float32(strides)
  return (np.tile(corners, 2)[..., None, :] + around).reshape(-1, 4)
