"""Depth from a single picture: how far away every pixel is, in metres."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from seg_jax import depth_losses, pictures
from seg_jax.metrics import depth as metrics
from seg_jax.ops import devices
from seg_jax.ops.resizing import resize_bilinear
from seg_jax.tasks.base import Maps, Task


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DepthTask(Task):
  """Depth, from a model's `depth`; in a batch `depth` float32 [N, H, W], 0 where not known."""

  maps: ClassVar = {'depth': jnp.float32}
  watched: ClassVar = 'abs_rel'
  smaller_is_better: ClassVar = True
  likelihood_factor: ClassVar = 0.5

  def loss_of(self, outputs: dict, batch: dict):
    """The loss that `config.loss.depth` names."""
    truth, name = self._known(batch['depth']), self.loss_config.depth
    loss = depth_losses.named(name)(outputs['depth'], truth)
    weight = devices.total(jnp.sum((truth > 0).astype(jnp.float32)))
    return loss, {name: loss, 'weight': weight}

  def _known(self, truth):
    """`truth`, 0 where it is farther than `max_depth`."""
    return truth * (truth <= self.max_depth).astype(truth.dtype) if self.max_depth else truth

  def read(self, outputs: dict, images: jax.Array) -> dict:
    """`depth` float32 [N, H, W]."""
    return {'depth': resize_bilinear(outputs['depth'][..., None], images.shape[1:3])[..., 0]}

  def empty(self) -> dict:
    """The measures of no picture yet."""
    return metrics.empty()

  def count(self, predictions: dict, batch: dict) -> dict:
    """What one batch adds: sums over its known pixels."""
    return metrics.count(predictions['depth'], self._known(batch['depth']), batch['valid'])

  def merge(self, state: dict, counts: dict) -> dict:
    """`state` with a batch's counts added, on the host, in 64 bits."""
    return metrics.merge(state, counts)

  def result(self, state: dict) -> dict:
    """The measures by name, ready for JSON."""
    return metrics.result(state)

  def table(self, result: dict) -> str:
    """The scores, for the terminal."""
    return metrics.table(result)

  def figures(self, state: dict) -> dict[str, Figure]:
    """None."""
    return {}

  @property
  def legend(self):
    """The ends of the colour map, which every picture has for its own range of depths."""
    return ('near', 'far'), pictures.colour_depth(np.float32([[1, 2]]))[0]

  def render(self, image: np.ndarray, prediction: Maps, target: Maps) -> list[np.ndarray]:
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged.

    Truth and prediction have the same colours for the same depths.
    """
    truth = self._known(target['depth'])
    image, *depths = pictures.enlarge(image, truth, prediction['depth'])
    return [image, *(pictures.colour_depth(depth, like=truth) for depth in depths)]

  def save(self, folder: Path, name: str, image: np.ndarray, prediction: Maps) -> None:
    """`depth/NAME.png`, 16 bits of millimetres, 65535 and more alike, and `depth_colours/NAME.png`.

    Depth is from 1 mm on, as 0 means unknown in such files.
    """
    millimetres = np.clip(np.rint(1000 * prediction['depth']), 1, 2**16 - 1).astype(np.uint16)
    pictures.write_png(folder / 'depth' / f'{name}.png', millimetres)
    colours = pictures.colour_depth(prediction['depth'])
    pictures.write_png(folder / 'depth_colours' / f'{name}.png', colours)
