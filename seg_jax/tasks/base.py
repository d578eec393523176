"""What every task is: a model, how it is fed, and what is asked of it.

The loop, the evaluation and prediction know this contract alone. A task of one decoder says in
`loss_of` and `read` what the model's outputs are worth and mean, and everything below them of its
own measures and pictures.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.ops import devices
from seg_jax.ops.colour import photometric
from seg_jax.ops.resizing import resize_bilinear

Maps = Mapping[str, np.ndarray]  # of one picture: [h, w] each, or a table
# The axis of rows, of what has some; what has none is a table.
_ROWS = {'image': 0, 'label': 0, 'depth': 0, 'instances': 0, 'panoptic': 0, 'masks': 1}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task(abc.ABC):
  """A model with the loss it is trained for and the measures it is judged by.

  Batches hold `image` uint8 [N, H, W, 3] (or as `config.data.channels` and `bits` say), `valid`
  bool [N], and the truth of each of `maps`. Training pictures come at the size that the model works
  at; for prediction they come at their own, are scaled by `image_scale` for the model, and what it
  says is scaled back.
  """

  model: nn.Module
  info: DatasetInfo
  loss_config: ml_collections.ConfigDict
  class_weights: np.ndarray | None  # float32 [num_classes]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_scale: float = 1.0
  photometric: float = 0.0  # strength of the change of colour in training
  bits: int = 8  # of a picture's values
  max_instances: int = 100  # objects of a picture in a batch
  min_score: float = 0.5  # of an object that is drawn and written
  min_stuff_area: int = 0  # pixels of a kind of stuff; fewer are void
  max_depth: float = 0.0  # metres; what is farther counts as unknown; 0: nothing is
  crf: str = 'none'  # behind the logits in prediction, one of `mean_field.FILTERS`
  threshold: float = 0.5  # of two classes' probabilities, in prediction

  maps: ClassVar[dict]  # [N, H, W] that are predicted, and their dtypes in a batch
  tables: ClassVar[Sequence[str]] = ()  # [N, ...] that are predicted and shown besides
  watched: ClassVar[str]  # the measure that chooses the best checkpoint
  smaller_is_better: ClassVar[bool] = False  # of `watched`
  headings: ClassVar[Sequence[str]] = ('picture', 'truth', 'prediction')  # of `render`'s panels
  # Of the loss, when the decoder's uncertainty is learned: a Gaussian's exponent has a half.
  likelihood_factor: ClassVar[float] = 1.0

  @property
  def truth(self) -> tuple[str, ...]:
    """What of a batch is shown beside a prediction."""
    return tuple(self.maps)

  @property
  def batch_keys(self) -> tuple[str, ...]:
    """What a batch needs to hold."""
    return ('image', *self.maps, 'valid')

  def example(self, batch_size: int, size: tuple[int, int]) -> dict:
    """The shapes of a training batch, for initialisation and compilation."""
    shape = (batch_size, *size)
    return {
      'image': jax.ShapeDtypeStruct((*shape, len(self.mean)), f'uint{self.bits}'),
      **{name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in self.maps.items()},
      'valid': jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
    }

  def init(self, key: jax.Array, batch: dict) -> dict:
    """The model's variables for batches such as this one."""
    return self.model.init(key, self._normalise(_unit(batch['image'])), train=False)

  def loss(self, variables: dict, batch: dict, key: jax.Array, train: bool):
    """The scalar to minimise, and `(new model state, logs)`.

    `logs['weight']` is the weight of the pixels that the mean is taken over, so that the parts of a
    batch can be joined to the mean over the whole.
    """
    colour_key, key = jax.random.split(key)
    images = _unit(batch['image'])
    if train:
      images = photometric(colour_key, images, self.photometric, largest=1.0)
    images = self._normalise(images)
    state = {name: value for name, value in variables.items() if name != 'params'}
    outputs, state = self.model.apply(
      variables,
      images,
      train=train,
      rngs={'dropout': devices.key_of_share(key), 'sampling': jax.random.fold_in(key, 1)},
      **self.given(batch),
      mutable=list(state) if train else [],
    )
    total, logs = self.loss_of(outputs, batch)
    return total, (state, logs)

  def predict(self, variables: dict, batch: dict) -> dict:
    """What `read` makes of the model's outputs, at the pictures' full size."""
    images = _unit(batch['image'])
    inputs = resize_bilinear(self._normalise(images), self.scaled(images.shape[1:3]))
    whole = jnp.broadcast_to(jnp.int32(images.shape[1:3]), (len(images), 2))
    size = batch.get('size', whole)
    outputs = self.model.apply(variables, inputs, train=False, **self.told(size, images.shape[1:3]))
    return self.read(outputs | {'size': size}, images)

  def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns that the model works at, for pictures of `size`."""
    rows, columns = (max(1, round(n * self.image_scale)) for n in size)
    return rows, columns

  def given(self, batch: dict) -> dict:
    """What the model is told of a batch in training, besides the pictures."""
    del batch
    return {}

  def told(self, size: jax.Array, whole: tuple[int, int]) -> dict:
    """What it is told in prediction: `size` [N, 2] of `whole` is picture, the rest padding."""
    del size, whole
    return {}

  def _normalise(self, images):
    shape = (1, 1, 1, -1)
    mean = jnp.asarray(self.mean, jnp.float32).reshape(shape)
    std = jnp.asarray(self.std, jnp.float32).reshape(shape)
    return (images - mean) / std

  def score(self, result: dict) -> float | None:
    """Of two checkpoints the one with the larger score is the better; None if it is not known."""
    value = result[self.watched]
    return -value if self.smaller_is_better and value is not None else value

  # What a task has of its own:

  @abc.abstractmethod
  def loss_of(self, outputs: dict, batch: dict) -> tuple[jax.Array, dict]:
    """The scalar to minimise, given what the model said of the batch, and logs with `weight`."""

  @abc.abstractmethod
  def read(self, outputs: dict, images: jax.Array) -> dict:
    """Predictions at the size of `images` in [0, 1], each of `maps` among them.

    `outputs` are the model's, and `size` int32 [N, 2]: the rows and columns of each picture without
    what is padded behind, as far as the batch tells.
    """

  @abc.abstractmethod
  def empty(self) -> dict:
    """The measures of no picture yet."""

  @abc.abstractmethod
  def count(self, predictions: dict, batch: dict) -> dict:
    """What one batch adds to the measures; jit-able."""

  @abc.abstractmethod
  def merge(self, state: dict, counts: dict) -> dict:
    """`state` with a batch's counts added, on the host, in 64 bits."""

  @abc.abstractmethod
  def result(self, state: dict) -> dict:
    """The measures by name, ready for JSON, `num_images` and `watched` among them."""

  @abc.abstractmethod
  def table(self, result: dict) -> str:
    """The scores for the terminal."""

  @abc.abstractmethod
  def figures(self, state: dict) -> dict[str, Figure]:
    """What is drawn of the measures, by the name of its file."""

  @property
  @abc.abstractmethod
  def legend(self) -> tuple[Sequence[str], np.ndarray]:
    """Names and colours, uint8 [K, 3], of what the panels show."""

  @abc.abstractmethod
  def render(self, image: np.ndarray, prediction: Maps, target: Maps) -> list[np.ndarray]:
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged."""

  @abc.abstractmethod
  def save(self, folder: Path, name: str, image: np.ndarray, prediction: Maps) -> None:
    """Writes what `--mode=predict` leaves of a picture: files `name` in folders of `folder`."""

  def finish(self, folder: Path, names: Sequence[str]) -> None:
    """Writes what `--mode=predict` leaves of all saved pictures together: nothing, for most."""
    del folder, names


def cut(name: str, array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """An array of one picture, without what was padded behind `size`; tables stay as they are."""
  if name not in _ROWS:
    return array
  return array[(slice(None),) * _ROWS[name] + tuple(map(slice, size))]


def _unit(images: jax.Array) -> jax.Array:
  """Pictures of 8 or 16 bits as float32 in [0, 1]."""
  return images.astype(jnp.float32) / jnp.iinfo(images.dtype).max
