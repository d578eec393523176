"""Mask R-CNN (He, Gkioxari, Dollar and Girshick, ICCV 2017, https://arxiv.org/abs/1703.06870).

Two stages. The first, a region proposal network (Ren et al. 2015), asks of some anchors at every
cell of a feature pyramid whether they hold an object, and how to move them. The second looks at the
best of these boxes, through RoIAlign: one head says which class each is of and moves it once more,
another one draws its mask, 28 x 28, one for each class. Without the masks it is Faster R-CNN, which
says what is where and nothing of outlines.

All shapes are static: there are always so many proposals and so many detections, and a flag for
each says whether it is one. As torchvision's `maskrcnn_resnet50_fpn` by default, which departs from
the paper in that RoIAlign takes pixels' corners for their middles, and boxes are normed by
(0.1, 0.1, 0.2, 0.2); with `proposal_convs=2, box_convs=4, head_norm='batch'` as its `_v2`. Class 0
of the heads is the background, k the k-th of the dataset's things.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from seg_jax.models.backbones import backbone_of
from seg_jax.models.fpn import FeaturePyramid
from seg_jax.models.layers import Conv, make_conv
from seg_jax.models.norms import make_norm
from seg_jax.models.unet import UpConv
from seg_jax.ops import boxes as box_ops
from seg_jax.ops import devices, matching, object_masks
from seg_jax.ops.nms import best, nms
from seg_jax.ops.roi_align import pyramid_level, roi_align

STRIDES = (4, 8, 16, 32, 64)  # of the pyramid; the second stage looks at the first four
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the second stage's deltas
BOX_CELLS, MASK_CELLS = 7, 14  # that RoIAlign cuts a box into, along each axis


class Objects(NamedTuple):
  """The objects of pictures, for training: M rows each, as in a batch."""

  boxes: Float[Array, 'N M 4']
  classes: Int[Array, 'N M']  # from 1
  masks: Bool[Array, 'N M H W']
  is_crowd: Bool[Array, 'N M']
  valid: Bool[Array, 'N M']


class MaskRCNN(nn.Module):
  """Objects in pictures of any height and width."""

  num_things: int  # classes of objects
  backbone: str = 'resnet50'
  backbone_width: float = 1.0  # times the backbone's channels
  output_stride: int = 32
  frozen_backbone_norm: bool = False
  norm: str = 'batch'  # of the backbone
  head_norm: str = 'none'  # of pyramid, box and mask head
  width: int = 256  # channels of the pyramid, and of the heads' convolutions
  proposal_convs: int = 1
  box_convs: int = 0  # before the fully connected layers, which are two, or else one
  box_features: int = 1024
  mask_convs: int = 4
  masks: bool = True
  anchor_scales: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels; one for each stride
  anchor_aspects: tuple[float, ...] = (0.5, 1.0, 2.0)  # height over width
  proposals: tuple[int, int] = (2000, 1000)  # of a picture, in training and after it
  proposal_overlap: float = 0.7  # IoU above which the lesser of two proposals goes
  anchor_samples: int = 256  # that the first stage learns from, in each picture
  box_samples: int = 512  # that the second does, at most a quarter of them objects
  candidates: int = 1000  # that detections are chosen from
  detections: int = 100  # of a picture
  score_threshold: float = 0.05
  overlap: float = 0.5  # IoU above which the lesser of two detections of a class goes
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    images: Float[Array, 'N H W C'],
    train: bool = False,
    objects: Objects | None = None,
    sizes: Float[Array, 'N 2'] | None = None,
  ) -> dict[str, jax.Array]:
    """What is found, or, where the `objects` are given, what there is to learn.

    `sizes`, rows and columns, say how much of each of the `images` is picture, and not filled up
    behind it; no box reaches out of that.

    Boxes are in pixels. Found are, for D `detections` of each picture, the best first: `boxes`
    float32 [N, D, 4], `scores` [N, D], `classes` int32 [N, D] from 1, `found` bool [N, D], and with
    `masks` their probabilities `masks` float32 [N, D, 28, 28]. With `objects`, see
    `_learn_anchors` and `_learn_boxes`; which boxes those are is drawn from the key 'sampling'.

    Raises:
      UserError: an unknown backbone or norm.
    """
    return self.detect(self.pyramid(images, train), limits_of(images, sizes), train, objects)

  def pyramid(self, images, train):
    """The maps by stride; the picture is filled up with its mean, as far as a whole cell needs."""
    margins = [(0, -n % 32) for n in images.shape[1:3]]
    padded = jnp.pad(images, ((0, 0), *margins, (0, 0)))
    features = backbone_of(self)(padded, train)
    fields = (self.width, self.head_norm, self.dtype)
    return FeaturePyramid(*fields, name='fpn')(features, train)

  def detect(self, maps, limits, train, objects):
    """Both stages, on the pyramid of pictures with `limits_of`."""
    anchors, logits, deltas = self._first_stage(maps)
    count = self.proposals[objects is None]
    proposals, valid = self._propose(anchors, logits, deltas, limits, count)
    box_head = _BoxHead(
      self.num_things + 1,
      self.width,
      self.box_convs,
      self.box_features,
      self.head_norm,
      self.dtype,
      name='box_head',
    )
    mask_head = _MaskHead(
      self.num_things + 1,
      self.width,
      self.mask_convs,
      self.head_norm,
      self.dtype,
      name='mask_head',
    )
    if objects is not None:
      first = self._learn_anchors(anchors, logits, deltas, objects)
      return first | self._learn_boxes(maps, proposals, valid, objects, box_head, mask_head, train)
    scores, moves = box_head(self._look(maps, proposals, BOX_CELLS), train)
    found = self._choose(proposals, valid, jax.nn.softmax(scores), moves, limits)
    if self.masks:
      logits = mask_head(self._look(maps, found['boxes'], MASK_CELLS), train)
      found['masks'] = jax.nn.sigmoid(_of_class(logits, found['classes']))
    return found

  def _first_stage(self, maps):
    """Anchors [A, 4], and for each a logit of being an object and deltas: [N, A], [N, A, 4]."""
    conv = make_conv(self.dtype)
    hidden = [
      conv(self.width, 3, bias=True, name=f'proposal_conv{i}') for i in range(self.proposal_convs)
    ]
    count = len(self.anchor_aspects)
    score = _small(count, 0.01, self.dtype, 'proposal_scores')
    move = _small(4 * count, 0.01, self.dtype, 'proposal_deltas')
    anchors, logits, deltas = [], [], []
    for stride, scale in zip(STRIDES, self.anchor_scales, strict=True):
      x = maps[stride]
      size = x.shape[1:3]
      for layer in hidden:
        x = nn.relu(layer(x))
      logits.append(score(x).reshape(len(x), -1))
      deltas.append(move(x).reshape(len(x), -1, 4))
      anchors.append(box_ops.anchors(size, _steps(maps, x), (scale,), self.anchor_aspects))
    return anchors, _float32(logits), _float32(deltas)

  def _propose(self, anchors, logits, deltas, limits, count):
    """The best boxes of a picture, [N, count, 4], and which there are, [N, count]."""
    levels = []
    for a, scores, moves in zip(anchors, logits, deltas, strict=True):
      k = min(count, len(a))
      scores, places = lax.top_k(scores, k)
      moves = jnp.take_along_axis(moves, places[..., None], 1)
      boxes = box_ops.clip(box_ops.decode(moves, jnp.asarray(a)[places]), limits[:, None])
      valid = jnp.all(boxes[..., 2:] - boxes[..., :2] >= 1e-3, -1)
      levels.append((boxes, scores, nms(boxes, scores, valid, self.proposal_overlap)))
    boxes, scores, kept = (jnp.concatenate(x, 1) for x in zip(*levels, strict=True))
    places, found = best(scores, kept, count)
    return lax.stop_gradient(jnp.take_along_axis(boxes, places[..., None], 1)), found

  def _look(self, maps, boxes, cells):
    """RoIAlign of each box at the level of its size: [N, R, cells, cells, width]."""
    seen = [maps[stride] for stride in STRIDES[:4]]
    strides = [_steps(maps, x)[0] for x in seen]
    return roi_align(seen, strides, boxes, pyramid_level(boxes, (2, 5)), cells)

  def _choose(self, proposals, valid, scores, moves, limits):
    """The detections among the proposals, of each class by itself."""
    n, count, classes = scores.shape
    boxes = box_ops.decode(moves, proposals[:, :, None], BOX_WEIGHTS)
    boxes = box_ops.clip(boxes, limits[:, None, None])[:, :, 1:].reshape(n, -1, 4)
    scores, valid = scores[..., 1:].reshape(n, -1), jnp.repeat(valid, classes - 1, -1)
    valid &= (scores > self.score_threshold) & jnp.all(boxes[..., 2:] - boxes[..., :2] >= 0.01, -1)
    of = jnp.tile(jnp.arange(1, classes, dtype=jnp.int32), count).reshape(1, -1)
    places, found = best(scores, valid, min(self.candidates, scores.shape[1]))
    boxes = jnp.take_along_axis(boxes, places[..., None], 1)
    scores = jnp.take_along_axis(scores, places, 1)
    of = jnp.take_along_axis(jnp.broadcast_to(of, valid.shape), places, 1)
    kept = nms(boxes, scores, found, self.overlap, of)
    places, found = best(scores, kept, self.detections)
    boxes = jnp.take_along_axis(boxes, places[..., None], 1)
    return {
      'boxes': jnp.where(found[..., None], boxes, 0),
      'scores': jnp.where(found, jnp.take_along_axis(scores, places, 1), 0),
      'classes': jnp.where(found, jnp.take_along_axis(of, places, 1), 0),
      'found': found,
    }

  def _learn_anchors(self, anchors, logits, deltas, objects):
    anchors = jnp.asarray(np.concatenate(anchors))
    keys = self._keys(len(objects.boxes))

    def of_picture(key, boxes, valid, is_crowd):
      matches = matching.match(anchors, boxes, valid, is_crowd, (0.3, 0.7), best_of_each=True)
      positive, negative = matching.sample(key, matches, self.anchor_samples, 0.5)
      return positive, negative, box_ops.encode(boxes[matches.objects], anchors)

    positive, negative, targets = jax.vmap(of_picture)(
      keys, objects.boxes, objects.valid, objects.is_crowd
    )
    return {
      'anchor_logits': jnp.concatenate(logits, 1),
      'anchor_deltas': jnp.concatenate(deltas, 1),
      'anchor_positive': positive,
      'anchor_negative': negative,
      'anchor_targets': targets,
    }

  def _keys(self, count):
    """A key for each picture, by its place in the whole batch."""
    keys = jax.random.split(self.make_rng('sampling'), count * devices.num_mapped())
    return devices.own_share(keys, axis=0)

  def _learn_boxes(self, maps, proposals, valid, objects, box_head, mask_head, train):
    sampled, positive, negative, of = self._sample_boxes(proposals, valid, objects)
    classes = jnp.where(positive, jnp.take_along_axis(objects.classes, of, 1), 0)
    truth = jnp.take_along_axis(objects.boxes, of[..., None], 1)
    logits, moves = box_head(self._look(maps, sampled, BOX_CELLS), train)
    learned = {
      'class_logits': logits,
      'class_targets': classes,
      'box_deltas': _of_class(moves, classes, axis=2),
      'box_targets': box_ops.encode(truth, sampled, BOX_WEIGHTS),
      'box_positive': positive,
      'box_negative': negative,
    }
    if not self.masks:
      return learned
    # The positive ones, which come first; where they are few again and again, so that batch
    # statistics are those of objects, and nothing is learned from that.
    few = self.box_samples // 4
    count = jnp.sum(positive, 1, keepdims=True, dtype=jnp.int32)
    places = jnp.arange(few, dtype=jnp.int32)[None] % jnp.maximum(count, 1)
    boxes = jnp.take_along_axis(sampled, places[..., None], 1)
    of, classes = (jnp.take_along_axis(x, places, 1) for x in (of, classes))
    logits = mask_head(self._look(maps, boxes, MASK_CELLS), train)
    targets = jax.vmap(object_masks.crop, (0, 0, 0, None))(objects.masks, of, boxes, 2 * MASK_CELLS)
    return learned | {
      'mask_logits': _of_class(logits, classes),
      'mask_targets': targets,
      'mask_positive': positive[:, :few],
    }

  def _sample_boxes(self, proposals, valid, objects):
    """Boxes [N, S, 4] that the second stage learns from, positive ones first; and their objects.

    The objects' own boxes are among the proposals, so that there is something to learn at first.
    """
    proposals = jnp.concatenate([proposals, objects.boxes], 1)
    valid = jnp.concatenate([valid, objects.valid & ~objects.is_crowd], 1)
    keys = self._keys(len(proposals))

    def of_picture(key, proposals, valid, boxes, known, is_crowd):
      matches = matching.match(proposals, boxes, known, is_crowd, (0.5, 0.5))
      matches = matches._replace(
        positive=matches.positive & valid, negative=matches.negative & valid
      )
      positive, negative = matching.sample(key, matches, self.box_samples, 0.25)
      rank = 2 * positive.astype(jnp.float32) + negative.astype(jnp.float32)
      places, found = best(rank, rank > 0, self.box_samples)
      taken = proposals[places], positive[places] & found, negative[places] & found
      return *taken, matches.objects[places]

    return jax.vmap(of_picture)(
      keys, proposals, valid, objects.boxes, objects.valid, objects.is_crowd
    )


class _BoxHead(nn.Module):
  classes: int
  width: int
  convs: int
  features: int
  norm: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cells, train):
    """Logits [N, R, classes] and deltas [N, R, classes, 4] of what RoIAlign gives."""
    x = cells.reshape(-1, *cells.shape[2:])
    x = _convs(x, self.convs, self.width, self.norm, train, self.dtype)
    fully = {'kernel_init': nn.initializers.he_normal(), 'dtype': self.dtype}
    x = nn.relu(Conv(self.features, x.shape[1:3], padding='VALID', name='fc6', **fully)(x))
    x = x.reshape(len(x), -1)
    if not self.convs:
      x = nn.relu(nn.Dense(self.features, name='fc7', **fully)(x))
    scores = _small(self.classes, 0.01, self.dtype, 'scores', dense=True)(x)
    deltas = _small(4 * self.classes, 0.001, self.dtype, 'deltas', dense=True)(x)
    shape = cells.shape[:2]
    scores, deltas = _float32((scores, deltas))
    return scores.reshape(*shape, -1), deltas.reshape(*shape, self.classes, 4)


class _MaskHead(nn.Module):
  classes: int
  width: int
  convs: int
  norm: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, cells, train):
    """Logits [N, R, 28, 28, classes] of what RoIAlign gives."""
    x = cells.reshape(-1, *cells.shape[2:])
    x = _convs(x, self.convs, self.width, self.norm, train, self.dtype)
    x = nn.relu(UpConv(self.width, dtype=self.dtype, name='upconv')(x))
    x = _small(self.classes, 0.01, self.dtype, 'scores')(x).astype(jnp.float32)
    return x.reshape(*cells.shape[:2], *x.shape[1:])


def _convs(x, count, width, norm, train, dtype):
  """3x3 convolutions in a row, called conv0, conv1, ..."""
  conv, make = make_conv(dtype), make_norm(norm, train, dtype)
  for i in range(count):
    x = conv(width, 3, bias=norm == 'none', name=f'conv{i}')(x)
    x = nn.relu(make(name=f'norm{i}')(x))
  return x


def _small(features, deviation, dtype, name, dense=False):
  """A 1x1 convolution, or a fully connected layer, that says nearly nothing at first."""
  fields = {'kernel_init': nn.initializers.normal(deviation), 'dtype': dtype, 'name': name}
  return nn.Dense(features, **fields) if dense else Conv(features, (1, 1), **fields)


def _steps(maps, x):
  """Pixels from one row, and from one column, of the map `x` of the pyramid to the next.

  Not always those of its name: the coarsest one's are less than 64 where the rows before it are no
  even number, and those of a backbone with a smaller `output_stride` stay at that.
  """
  return tuple(4 * n // m for n, m in zip(maps[4].shape[1:3], x.shape[1:3], strict=True))


def limits_of(images, sizes):
  """How far a box may reach, for `box_ops.clip`: float32 [N, 4]."""
  if sizes is None:
    sizes = jnp.broadcast_to(jnp.float32(images.shape[1:3]), (len(images), 2))
  return jnp.tile(sizes.astype(jnp.float32), 2)


def _float32(arrays):
  return [x.astype(jnp.float32) for x in arrays]


def _of_class(x, classes, axis=-1):
  """`x`, which has an axis of classes, at `classes` [N, R]; without that axis."""
  axis %= x.ndim
  shape = [*classes.shape, *[1] * (x.ndim - 2)]
  return jnp.take_along_axis(x, classes.reshape(shape), axis).squeeze(axis)
