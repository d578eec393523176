"""Instance segmentation: which objects there are, and each one's class, box and mask."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure

from seg_jax import atomic, detection_losses, pictures
from seg_jax.metrics import objects as metrics
from seg_jax.models.mask_rcnn import Objects
from seg_jax.ops import boxes as box_ops
from seg_jax.ops import devices, object_masks
from seg_jax.tasks.base import Maps, Task


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InstanceTask(Task):
  """Objects of a `MaskRCNN`; in a batch those that `data.instances.padded` gives.

  Boxes are y0, x0, y1, x1 in pixels of the picture, classes those of the dataset.
  """

  maps: ClassVar = {'instances': jnp.int32}
  tables: ClassVar = ('boxes', 'scores', 'classes', 'found')
  truth: ClassVar = ('masks', 'boxes', 'classes', 'instance_valid')
  batch_keys: ClassVar = ('image', *truth, 'is_crowd', 'size', 'valid')

  @property
  def kinds(self) -> tuple[str, ...]:
    """What is judged; a detector alone has no masks."""
    return metrics.KINDS if self.model.masks else metrics.KINDS[:1]

  @property
  def watched(self) -> str:
    return f'{self.kinds[-1]}_ap'

  def example(self, batch_size: int, size: tuple[int, int]) -> dict:
    """The shapes of a training batch, for initialisation and compilation."""
    rows = (batch_size, self.max_instances)
    shapes = {
      'image': ((batch_size, *size, len(self.mean)), f'uint{self.bits}'),
      'boxes': ((*rows, 4), jnp.float32),
      'classes': (rows, jnp.int32),
      'masks': ((*rows, *size), jnp.bool_),
      'is_crowd': (rows, jnp.bool_),
      'size': ((batch_size, 2), jnp.int32),
      'instance_valid': (rows, jnp.bool_),
      'valid': ((batch_size,), jnp.bool_),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}

  def given(self, batch: dict) -> dict:
    """The objects, of which the model chooses what to learn from; things are counted from 1."""
    things = np.zeros(self.info.num_classes, np.int32)
    things[list(self.info.things)] = np.arange(1, 1 + len(self.info.things))
    classes = jnp.asarray(things)[batch['classes']]
    return {
      'objects': Objects(
        batch['boxes'], classes, batch['masks'], batch['is_crowd'], batch['instance_valid']
      )
    }

  def told(self, size: jax.Array, whole: tuple[int, int]) -> dict:
    """How far boxes may reach, in pixels of the model's pictures."""
    factors = [m / n for n, m in zip(whole, self.scaled(whole), strict=True)]
    return {'sizes': size.astype(jnp.float32) * jnp.float32([factors])}

  def loss_of(self, outputs: dict, batch: dict):
    """The sum of all terms, as in the paper; each is told."""
    terms = detection_losses.losses(outputs)
    weight = devices.total(jnp.sum(batch['valid'], dtype=jnp.float32))
    return sum(terms.values()), terms | {'weight': weight}

  def read(self, outputs: dict, images: jax.Array) -> dict:
    """The detections, the best first, and the map of them.

    `instances` int32 [N, H, W] is k where the k-th covers a pixel that none before it does, from 1,
    and 0 elsewhere, of those that score `min_score`; `object_masks` bool [N, D, H, W] holds all of
    each. A detector alone has its boxes for masks.
    """
    size = images.shape[1:3]
    rows, columns = (n / m for n, m in zip(size, self.scaled(size), strict=True))
    boxes, found = outputs['boxes'] * jnp.float32([[[rows, columns] * 2]]), outputs['found']
    small = outputs.get('masks', jnp.ones((*boxes.shape[:2], 28, 28)))
    inside = self.inside(outputs, size)

    def paste(of_each):  # one object of every picture
      masks, boxes, found = of_each
      solid = object_masks.paste(masks, boxes, size) > 0.5
      return solid & inside & found[:, None, None]

    # Objects in turns, and not pictures, which may lie on different devices.
    by_object = (jnp.swapaxes(x, 0, 1) for x in (small, boxes, found))
    masks = jnp.swapaxes(lax.map(paste, tuple(by_object)), 0, 1)
    count = jnp.sum(self._seen(outputs), -1, dtype=jnp.int32)
    numbers = object_masks.first(masks)
    classes = jnp.int32([0, *self.info.things])[outputs['classes']]
    return {
      'instances': jnp.where(numbers <= count[:, None, None], numbers, 0),
      'boxes': boxes,
      'scores': outputs['scores'],
      'classes': classes,
      'found': found,
      'object_masks': masks,
    }

  def inside(self, outputs: dict, size: tuple[int, int]) -> jax.Array:
    """Which pixels are not padded behind a picture: bool [N, H, W]."""
    rows, columns = (
      jnp.arange(n, dtype=jnp.int32)[None] < outputs['size'][:, axis, None]
      for axis, n in enumerate(size)
    )
    return rows[:, :, None] & columns[:, None]

  def _seen(self, prediction):
    """The detections that are drawn and written: the first ones, as the best come first."""
    return prediction['found'] & (prediction['scores'] >= self.min_score)

  def empty(self) -> dict:
    """The measures of no picture yet."""
    return {'pictures': []}

  def count(self, predictions: dict, batch: dict) -> dict:
    """What the measures need of each picture: scores, classes, and the pixels that are shared."""
    shared, areas, of_truth = object_masks.overlaps(predictions['object_masks'], batch['masks'])
    return {
      **{name: predictions[name] for name in ('scores', 'classes', 'found')},
      'box_shared': box_ops.intersection(predictions['boxes'], batch['boxes']),
      'box_areas': box_ops.area(predictions['boxes']),
      'truth_box_areas': box_ops.area(batch['boxes']),
      'mask_shared': shared,
      'mask_areas': areas,
      'truth_mask_areas': of_truth,
      'truth_classes': batch['classes'],
      **{name: batch[name] for name in ('is_crowd', 'instance_valid', 'valid')},
    }

  def merge(self, state: dict, counts: dict) -> dict:
    """`state` with the pictures of a batch, without the rows that fill them up."""
    rows = []
    for n in np.flatnonzero(counts['valid']):
      picture = {name: array[n] for name, array in counts.items()}
      found, known = picture.pop('found'), picture.pop('instance_valid')
      del picture['valid']
      for name, array in picture.items():
        if name.endswith('_shared'):
          picture[name] = array[found][:, known]
        else:
          of_truth = name.startswith('truth_') or name == 'is_crowd'
          picture[name] = array[known if of_truth else found]
      rows.append(picture)
    return {'pictures': state['pictures'] + rows}

  def result(self, state: dict) -> dict:
    """The measures by name, ready for JSON."""
    classes = {k: self.info.class_names[k] for k in self.info.things}
    measures = metrics.result(state['pictures'], self.kinds, classes)
    return measures | {'num_images': len(state['pictures'])}

  def table(self, result: dict) -> str:
    """The scores of each class, for the terminal."""
    return metrics.table(result, self.kinds)

  def figures(self, state: dict) -> dict[str, Figure]:
    """None."""
    return {}

  @property
  def legend(self):
    """The things, whose colours the boxes have."""
    things = list(self.info.things)
    return [self.info.class_names[k] for k in things], self.info.palette[things]

  def render(self, image: np.ndarray, prediction: Maps, target: Maps) -> list[np.ndarray]:
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged."""
    truth = np.asarray(object_masks.last(target['masks']))
    large, truth, found = pictures.enlarge(image, truth, prediction['instances'])
    factor = len(large) // len(image)
    return [
      large,
      self._drawn(large, truth, factor, target, target['instance_valid']),
      self._drawn(large, found, factor, prediction, self._seen(prediction)),
    ]

  def _drawn(self, image, instances, factor, objects, which):
    boxes, classes = objects['boxes'][which] * factor, objects['classes'][which]
    captions = [self.info.class_names[k] for k in classes]
    if 'scores' in objects:
      scores = objects['scores'][which]
      captions = [f'{name} {score:.0%}' for name, score in zip(captions, scores, strict=True)]
    picture = pictures.draw_instances(pictures.viewable(image), instances)
    return pictures.draw_boxes(picture, boxes, captions, self.info.palette[classes])

  def save(self, folder: Path, name: str, image: np.ndarray, prediction: Maps) -> None:
    """`objects/NAME.png`, 16 bits with the objects' numbers, `.json`, and `overlays/NAME.png`.

    The JSON is a list of `number`, `class`, `score` and `box`, y0, x0, y1, x1 in pixels.
    """
    ids = prediction['instances'].astype(np.uint16)
    pictures.write_png(folder / 'objects' / f'{name}.png', ids)
    found = [
      {
        'number': k + 1,
        'class': self.info.class_names[prediction['classes'][k]],
        'score': round(float(prediction['scores'][k]), 4),
        'box': [round(float(v), 1) for v in prediction['boxes'][k]],
      }
      for k in np.flatnonzero(self._seen(prediction)).tolist()
    ]
    atomic.write_bytes(folder / 'objects' / f'{name}.json', json.dumps(found, indent=1).encode())
    drawn = self._drawn(image, prediction['instances'], 1, prediction, self._seen(prediction))
    pictures.write_png(folder / 'overlays' / f'{name}.png', drawn)
