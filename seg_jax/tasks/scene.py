"""Scene understanding: several tasks on one model, each of which has a decoder of its own.

Their losses are joined by fixed weights, or by what the model has learned of each one's uncertainty
(Kendall, Gal and Cipolla, CVPR 2018): with s = log sigma^2 of a decoder, and L its loss,

    sum of  exp(-s) L + s / 2  over classifications, and  exp(-s) L / 2 + s / 2  over regressions

(section 3.2, equation 10). The paper's L are cross entropy and squared error; here they are
whatever the tasks are trained for. The factor of L changes s, by its logarithm, but not the weight
that a loss ends with: where s is best it is 1 / (2 L).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from seg_jax.tasks.base import Maps, Task


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SceneTask(Task):
  """Everything of all `parts`; the first one's measures stand at the top and are watched."""

  parts: Mapping[str, Task]  # by their decoders

  @property
  def _first(self) -> Task:
    return next(iter(self.parts.values()))

  @property
  def maps(self) -> dict:
    return {name: dtype for part in self.parts.values() for name, dtype in part.maps.items()}

  @property
  def watched(self) -> str:
    return self._first.watched

  @property
  def smaller_is_better(self) -> bool:
    return self._first.smaller_is_better

  def loss_of(self, outputs: dict, batch: dict):
    """The weighted sum; the logs are those of all parts, and each one's loss by its decoder."""
    total, weight, logs = 0.0, 0.0, {}
    learned = outputs.get('log_variances')
    for name, part in self.parts.items():
      loss, own = part.loss_of(outputs, batch)
      weight += own.pop('weight')
      logs |= own | {name: loss}
      if learned:
        s = learned[name]
        total += part.likelihood_factor * jnp.exp(-s) * loss + 0.5 * s
        logs[f'{name}_log_variance'] = s
      else:
        total += self.loss_config.weights[name] * loss
    return total, logs | {'weight': weight}

  def read(self, outputs: dict, images: jax.Array) -> dict:
    """The predictions of all parts."""
    read = [part.read(outputs, images) for part in self.parts.values()]
    return {name: array for predictions in read for name, array in predictions.items()}

  def empty(self) -> dict:
    """The measures of no picture yet, by decoder."""
    return {name: part.empty() for name, part in self.parts.items()}

  def count(self, predictions: dict, batch: dict) -> dict:
    """What one batch adds to each."""
    return {name: part.count(predictions, batch) for name, part in self.parts.items()}

  def merge(self, state: dict, counts: dict) -> dict:
    """`state` with a batch's counts added, on the host, in 64 bits."""
    return {name: part.merge(state[name], counts[name]) for name, part in self.parts.items()}

  def result(self, state: dict) -> dict:
    """The first one's measures by name, and below them those of the others, by decoder."""
    first, *others = ((name, part.result(state[name])) for name, part in self.parts.items())
    return first[1] | dict(others)

  def table(self, result: dict) -> str:
    """The scores, one part after the other, for the terminal."""
    tables = [
      part.table(result[name] if i else result) for i, (name, part) in enumerate(self.parts.items())
    ]
    return '\n\n'.join(tables)

  def figures(self, state: dict) -> dict[str, Figure]:
    """What is drawn of the measures, by the name of its file."""
    drawn = [part.figures(state[name]) for name, part in self.parts.items()]
    return {name: figure for figures in drawn for name, figure in figures.items()}

  @property
  def legend(self):
    """Names and colours of all parts."""
    names, palettes = zip(*(part.legend for part in self.parts.values()), strict=True)
    return [name for some in names for name in some], np.concatenate(palettes)

  @property
  def headings(self) -> list[str]:
    """The picture, then truth and prediction of each."""
    panels = [f'{name}, {x}' for name, part in self.parts.items() for x in part.headings[1:]]
    return ['picture', *panels]

  def render(self, image: np.ndarray, prediction: Maps, target: Maps) -> list[np.ndarray]:
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged."""
    panels = [part.render(image, prediction, target) for part in self.parts.values()]
    return [panels[0][0], *(panel for own in panels for panel in own[1:])]

  def save(self, folder: Path, name: str, image: np.ndarray, prediction: Maps) -> None:
    """The files of all parts."""
    for part in self.parts.values():
      part.save(folder, name, image, prediction)
