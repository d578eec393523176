"""Semantic segmentation: one class for every pixel."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from seg_jax import losses, pictures
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.metrics import semantic as metrics
from seg_jax.ops import devices
from seg_jax.ops.colour import photometric
from seg_jax.ops.resizing import resize_bilinear

TOP = 5  # a pixel's class among the five likeliest counts, where there are more classes


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticTask:
  """A model with the loss it is trained for and the measures it is judged by.

  Batches hold `image` uint8 [N, H, W, 3] (or as `config.data.channels` and `bits` say), `label`
  int32 [N, H, W] with 255 = ignore, and `valid` bool [N]. Training pictures come at the size that
  the model works at; for prediction they come at their own, are scaled by `image_scale` for the
  model, and its logits are scaled back.
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

  watched = 'miou'  # the measure that chooses the best checkpoint
  batch_keys = ('image', 'label', 'valid')  # what a batch needs to hold

  def example(self, batch_size: int, size: tuple[int, int]) -> dict:
    """The shapes of a training batch, for initialisation and compilation."""
    return {
      'image': jax.ShapeDtypeStruct((batch_size, *size, len(self.mean)), f'uint{self.bits}'),
      'label': jax.ShapeDtypeStruct((batch_size, *size), jnp.int32),
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
      rngs={'dropout': devices.key_of_share(key)},
      mutable=list(state) if train else [],
    )
    total, logs = self._combined(outputs['logits'], batch)
    if auxiliary := outputs.get('aux_logits', ()):
      logs['auxiliary'] = sum(self._combined(logits, batch)[0] for logits in auxiliary)
      total += self.loss_config.auxiliary * logs['auxiliary']
    weight = devices.total(losses.pixel_weights(batch['label'], self.class_weights).sum())
    return total, (state, logs | {'weight': weight})

  def _combined(self, logits, batch):
    return losses.combine(logits, batch['label'], self.loss_config, self.class_weights)

  def predict(self, variables: dict, batch: dict) -> dict:
    """`logits` float32 [N, H, W, num_classes] and `label` int32 [N, H, W], both at full size."""
    images = self._normalise(_unit(batch['image']))
    size = images.shape[1:3]
    scaled = tuple(max(1, round(n * self.image_scale)) for n in size)
    logits = self.model.apply(variables, resize_bilinear(images, scaled), train=False)['logits']
    logits = resize_bilinear(logits, size)
    return {'logits': logits, 'label': jnp.argmax(logits, -1).astype(jnp.int32)}

  def _normalise(self, images):
    shape = (1, 1, 1, -1)
    mean = jnp.asarray(self.mean, jnp.float32).reshape(shape)
    std = jnp.asarray(self.std, jnp.float32).reshape(shape)
    return (images - mean) / std

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

  headings = ('picture', 'truth', 'prediction')

  def render(self, image: np.ndarray, prediction: np.ndarray, target: np.ndarray):
    """Panels uint8 [h, w, 3], one under each of `headings`; small pictures are enlarged."""
    image, target, prediction = pictures.enlarge(image, target, prediction)
    return [image, *(pictures.colourise(x, self.info.palette) for x in (target, prediction))]


def _unit(images: jax.Array) -> jax.Array:
  """Pictures of 8 or 16 bits as float32 in [0, 1]."""
  return images.astype(jnp.float32) / jnp.iinfo(images.dtype).max
