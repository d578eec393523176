"""Panoptic segmentation: of every pixel which stuff it is, or which object of which class.

Kirillov et al., Panoptic Segmentation, CVPR 2019; trained as their Panoptic FPN (section 3), by
the sum of Mask R-CNN's losses and, times `loss.weights.semantic`, the semantic branch's.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax import IGNORE, atomic, losses, pictures
from seg_jax.metrics import panoptic as metrics
from seg_jax.metrics import semantic
from seg_jax.ops import object_masks, panoptic
from seg_jax.ops.resizing import resize_bilinear
from seg_jax.tasks.base import Maps
from seg_jax.tasks.instance import InstanceTask


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PanopticTask(InstanceTask):
  """Segments of a `PanopticFPN`: the k-th detection is k, the k-th kind of stuff D + k, void 0.

  In truth, with M rows of objects, they are k and M + k likewise. What has the label of a thing and
  is in no object is void, as what is ignored is, and what is padded behind a picture.
  """

  maps: ClassVar = {'panoptic': jnp.int32}
  truth: ClassVar = (*InstanceTask.truth, 'label')
  batch_keys: ClassVar = (*InstanceTask.batch_keys, 'label')
  watched: ClassVar = 'pq'

  @property
  def stuff(self) -> list[int]:
    """The classes that are no things, in the order of the semantic branch."""
    return [k for k in range(self.info.num_classes) if k not in self.info.things]

  def example(self, batch_size: int, size: tuple[int, int]) -> dict:
    """The shapes of a training batch, for initialisation and compilation."""
    label = jax.ShapeDtypeStruct((batch_size, *size), jnp.int32)
    return super().example(batch_size, size) | {'label': label}

  @property
  def _ids(self):
    return self.info.ids or range(self.info.num_classes)

  def _stuff_of(self, label):
    """0 for things, k for the k-th kind of stuff; what is ignored stays so."""
    kinds = np.full(IGNORE + 1, IGNORE, np.int32)
    kinds[: self.info.num_classes] = 0
    kinds[self.stuff] = np.arange(1, 1 + len(self.stuff))
    return jnp.asarray(kinds)[label]

  def loss_of(self, outputs: dict, batch: dict):
    """Mask R-CNN's terms and cross entropy; each is told."""
    total, logs = super().loss_of(outputs, batch)
    stuff = losses.cross_entropy(outputs['logits'], self._stuff_of(batch['label']))
    return total + self.loss_config.weights.semantic * stuff, logs | {'semantic': stuff}

  def read(self, outputs: dict, images: jax.Array) -> dict:
    """What `InstanceTask` reads, and `panoptic` int32 [N, H, W]."""
    read = super().read(outputs, images)
    logits = resize_bilinear(outputs['logits'], images.shape[1:3])

    @jax.vmap
    def merge(*picture):
      return panoptic.merge(
        *picture, len(self.stuff), self.min_score, min_stuff_area=self.min_stuff_area
      )

    stuff = jnp.argmax(logits, -1).astype(jnp.int32)
    stuff = jnp.where(self.inside(outputs, images.shape[1:3]), stuff, 0)
    segments = merge(read['object_masks'], read['scores'], read['found'], stuff)
    return read | {'panoptic': segments}

  def empty(self) -> dict:
    """The measures of no picture yet."""
    return super().empty() | {'quality': metrics.empty(self.info.num_classes)}

  def count(self, predictions: dict, batch: dict) -> dict:
    """What the measures need of each picture."""
    stuff = jnp.asarray(self.stuff, jnp.int32)

    @jax.vmap
    def of_picture(predicted, classes, masks, truth_classes, is_crowd, valid, label):
      truth = _truth(masks, self._stuff_of(label))
      segments = len(classes) + len(stuff), len(masks) + len(stuff)
      return metrics.count(
        metrics.shared(predicted, truth, *segments, jnp.broadcast_to(valid, truth.shape)),
        jnp.concatenate([classes, stuff]),
        jnp.concatenate([truth_classes, stuff]),
        jnp.concatenate([is_crowd, jnp.zeros(len(stuff), bool)]),
        self.info.num_classes,
      )

    rows = (
      *(predictions[name] for name in ('panoptic', 'classes')),
      *(batch[name] for name in ('masks', 'classes', 'is_crowd', 'valid', 'label')),
    )
    quality = jax.tree.map(lambda x: jnp.sum(x, 0, dtype=x.dtype), of_picture(*rows))
    return super().count(predictions, batch) | {'quality': quality}

  def merge(self, state: dict, counts: dict) -> dict:
    """`state` with the pictures of a batch, without the rows that fill them up."""
    quality = semantic.merge(state['quality'], counts['quality'])
    rest = {name: array for name, array in counts.items() if name != 'quality'}
    return super().merge(state, rest) | {'quality': quality}

  def result(self, state: dict) -> dict:
    """Panoptic quality, and below `instance` the precision of the detections by themselves."""
    quality = metrics.result(state['quality'], self.info.class_names, self.info.things)
    instance = super().result(state)
    return quality | {'num_images': instance['num_images'], 'instance': instance}

  def table(self, result: dict) -> str:
    """The quality of each class, for the terminal, and the precision of each thing."""
    return f'{metrics.table(result)}\n\n{super().table(result["instance"])}'

  @property
  def legend(self):
    """The classes."""
    return self.info.class_names, self.info.palette

  def render(self, image: np.ndarray, prediction: Maps, target: Maps) -> list[np.ndarray]:
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged."""
    truth = np.asarray(_truth(target['masks'], self._stuff_of(target['label'])))
    large, truth, found = pictures.enlarge(image, truth, prediction['panoptic'])
    return [
      large,
      pictures.draw_segments(truth, self._colours(target)),
      pictures.draw_segments(found, self._colours(prediction)),
    ]

  def _classes(self, of):
    """Of each segment, from the first."""
    return np.concatenate([of['classes'], np.array(self.stuff, np.int32)])

  def _colours(self, of):
    """Those of the classes, lighter or darker from object to object."""
    shades = 0.7 + 0.6 * (np.arange(len(of['classes'])) * 0.618 % 1)  # the golden ratio
    shades = np.concatenate([shades, np.ones(len(self.stuff))])
    return np.minimum(self.info.palette[self._classes(of)] * shades[:, None], 255).astype(np.uint8)

  def save(self, folder: Path, name: str, image: np.ndarray, prediction: Maps) -> None:
    """`panoptic/NAME.png` and `.json` in COCO's format, and `overlays/NAME.png`.

    A pixel of segment k has R + 256 G + 65536 B = k; the JSON is what COCO has for one picture
    among its `annotations`. `finish` joins them all.
    """
    segments, classes = prediction['panoptic'], self._classes(prediction)
    rows = []
    for k in np.unique(segments[segments > 0]).tolist():
      (y,), (x,) = (np.nonzero((segments == k).any(axis)) for axis in (1, 0))
      rows.append(
        {
          'id': k,
          'category_id': self._ids[classes[k - 1]],
          'area': int(np.sum(segments == k)),
          'bbox': [int(n) for n in (x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1)],
          'iscrowd': 0,
        }
      )
    told = {
      'image_id': int(name) if name.isdecimal() else name,
      'file_name': f'{name}.png',
      'segments_info': rows,
    }
    rgb = np.stack([segments >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    pictures.write_png(folder / 'panoptic' / f'{name}.png', rgb)
    atomic.write_bytes(folder / 'panoptic' / f'{name}.json', json.dumps(told).encode())
    drawn = pictures.draw_segments(segments, self._colours(prediction), pictures.viewable(image))
    pictures.write_png(folder / 'overlays' / f'{name}.png', drawn)

  def finish(self, folder: Path, names: Sequence[str]) -> None:
    """`panoptic.json`, with the `annotations` of `names`, and the `categories`."""
    paths = [folder / 'panoptic' / f'{name}.json' for name in names]
    annotations = [json.loads(path.read_bytes()) for path in paths]
    categories = [
      {'id': self._ids[k], 'name': name, 'isthing': int(k in self.info.things)}
      for k, name in enumerate(self.info.class_names)
    ]
    joined = {'annotations': annotations, 'categories': categories}
    atomic.write_bytes(folder / 'panoptic.json', json.dumps(joined).encode())


def _truth(masks, stuff):
  """The map of segments, from objects [M, H, W] and `_stuff_of` labels [H, W]."""
  numbers, known = object_masks.last(masks), (stuff > 0) & (stuff != IGNORE)
  return jnp.where((numbers == 0) & known, len(masks) + stuff, numbers)
