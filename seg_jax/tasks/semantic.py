"""Semantic segmentation: one class for every pixel."""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from seg_jax import losses, pictures
from seg_jax.metrics import semantic as metrics
from seg_jax.ops import dense_crf, devices
from seg_jax.ops.decision import decide
from seg_jax.ops.resizing import resize_bilinear
from seg_jax.tasks.base import Maps, Task

TOP = 5  # a pixel's class among the five likeliest counts, where there are more classes


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SemanticTask(Task):
  """Labels, from a model's `logits`; in a batch `label` int32 [N, H, W] with 255 = ignore."""

  maps: ClassVar = {'label': jnp.int32}
  watched: ClassVar = 'miou'

  def loss_of(self, outputs: dict, batch: dict):
    """The terms of `config.loss`, of the logits and, by a weight, of the model's further ones."""
    total, logs = self._combined(outputs['logits'], batch)
    if auxiliary := outputs.get('aux_logits', ()):
      logs['auxiliary'] = sum(self._combined(logits, batch)[0] for logits in auxiliary)
      total += self.loss_config.auxiliary * logs['auxiliary']
    weight = devices.total(losses.pixel_weights(batch['label'], self.class_weights).sum())
    return total, logs | {'weight': weight}

  def _combined(self, logits, batch):
    return losses.combine(logits, batch['label'], self.loss_config, self.class_weights)

  def read(self, outputs: dict, images: jax.Array) -> dict:
    """`logits` float32 [N, H, W, num_classes] and `label` int32 [N, H, W]."""
    logits = resize_bilinear(outputs['logits'], images.shape[1:3])
    if self.crf != 'none':
      logits = dense_crf.refine(logits, 255 * images, self.crf)
    return {'logits': logits, 'label': decide(logits, self.threshold)}

  def empty(self) -> dict:
    """The measures of no picture yet."""
    return metrics.empty(self.info.num_classes) | {'cross_entropy': np.zeros((), np.float64)}

  def count(self, predictions: dict, batch: dict) -> dict:
    """What one batch adds: int32 counts of its labelled pixels, and their summed cross entropy."""
    logits, labels = predictions['logits'], batch['label']
    in_top = metrics.in_top_k(logits, labels, TOP) if self.info.num_classes > TOP else None
    counts = metrics.count(
      predictions['label'], labels, batch['valid'], in_top, num_classes=self.info.num_classes
    )
    pixels = losses.pixel_weights(labels).sum()
    return counts | {'cross_entropy': losses.cross_entropy(logits, labels) * pixels}

  def merge(self, state: dict, counts: dict) -> dict:
    """`state` with a batch's counts added, on the host, in 64 bits."""
    return metrics.merge(state, counts)

  def result(self, state: dict) -> dict:
    """The measures by name, ready for JSON."""
    result = metrics.result(state, self.info.class_names)
    pixels, total = int(state['confusion'].sum()), float(state['cross_entropy'])
    known = pixels > 0 and math.isfinite(total)  # JSON knows no NaN
    return {'cross_entropy': total / pixels if known else None} | result

  def table(self, result: dict) -> str:
    """The scores of each class, for the terminal."""
    return metrics.table(result)

  def figures(self, state: dict) -> dict[str, Figure]:
    """What is drawn of the measures, by the name of its file."""
    return {'confusion': pictures.confusion_figure(state['confusion'], self.info.class_names)}

  @property
  def legend(self):
    """The classes."""
    return self.info.class_names, self.info.palette

  def render(self, image: np.ndarray, prediction: Maps, target: Maps) -> list[np.ndarray]:
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged."""
    image, *labels = pictures.enlarge(image, target['label'], prediction['label'])
    return [image, *(pictures.colourise(label, self.info.palette) for label in labels)]

  def save(self, folder: Path, name: str, image: np.ndarray, prediction: Maps) -> None:
    """`labels/NAME.png`, classes with a palette, and `overlays/NAME.png`."""
    label, palette = prediction['label'].astype(np.uint8), self.info.palette
    pictures.write_palette_png(folder / 'labels' / f'{name}.png', label, palette)
    drawn = pictures.overlay(image, label, palette)
    pictures.write_png(folder / 'overlays' / f'{name}.png', drawn)
