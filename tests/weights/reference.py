"""The models of torchvision and timm that ours are held against, and the weights for both.

Weights are drawn by their name in PyTorch, so the same are had where it is not installed; there the
logits in `vectors.npz`, which `make_vectors.py` took from the models, stand in for them.
"""

import functools
import math
import sys
import unittest
import zlib
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.models.backbones.hrnet import HRNetClassifier
from seg_jax.models.classifier import Classifier
from seg_jax.models.deeplab_v3 import DeepLabV3
from seg_jax.models.fcn_resnet import FCNResNet
from seg_jax.weights import convert, load, names

VECTORS = Path(__file__).parent / 'vectors.npz'
_KEPT = []  # libraries of operators last as long as their objects


class Case(NamedTuple):
  """One of their models, by the name that builds it, and ours."""

  whose: str
  name: str
  ours: nn.Module
  system: str = 'classifier'
  fields: dict = {}  # noqa: RUF012 (never changed) of theirs
  size: tuple[int, int] = (65, 97)  # of a picture that both take

  @property
  def tables(self) -> list[names.Table]:
    backbone = getattr(self.ours, 'backbone', 'hrnet_w18')
    return names.tables({'name': self.system, 'backbone': backbone})


def _segmentation(name: str, system: str, ours: nn.Module) -> Case:
  fields = {'weights': None, 'weights_backbone': None, 'num_classes': 21, 'aux_loss': True}
  return Case('torchvision', name, ours, system, fields)


CASES = {
  case.name: case
  for case in (
    *[
      Case('torchvision', f'resnet{depth}', Classifier(backbone=f'resnet{depth}'))
      for depth in (18, 34, 50, 101, 152)
    ],
    Case('torchvision', 'mobilenet_v2', Classifier(backbone='mobilenet_v2')),
    # VGG16's poolings drop a last row without a partner there, and do not here.
    Case('torchvision', 'vgg16', Classifier(backbone='vgg16', norm='none'), size=(64, 96)),
    Case('torchvision', 'vgg16_bn', Classifier(backbone='vgg16'), size=(64, 96)),
    Case('torchvision', 'alexnet', Classifier(backbone='alexnet', norm='none'), size=(97, 129)),
    _segmentation('fcn_resnet50', 'fcn_resnet', FCNResNet(21)),
    _segmentation('fcn_resnet101', 'fcn_resnet', FCNResNet(21, 'resnet101')),
    _segmentation('deeplabv3_resnet50', 'deeplab_v3', DeepLabV3(21)),
    _segmentation('deeplabv3_resnet101', 'deeplab_v3', DeepLabV3(21, 'resnet101')),
    Case('timm', 'mobilenetv2_100', Classifier(backbone='mobilenet_v2')),
    Case('timm', 'xception65', Classifier(backbone='xception65')),
    # timm's takes multiples of 32 alone.
    *[
      Case('timm', f'hrnet_w{width}', HRNetClassifier(width=width), size=(64, 96))
      for width in (18, 32, 48)
    ],
  )
}


def build(case: Case):
  """Their model without values; skips the test where it is not installed."""
  try:
    import torch

    create = _torchvision().models.get_model
    if case.whose == 'timm':
      import timm

      create = timm.create_model
  except ImportError as error:
    raise unittest.SkipTest(f'{error.name} is not installed') from error
  with torch.device('meta'):
    return create(case.name, **case.fields)


@functools.cache
def _torchvision():
  """torchvision, whose models need none of its compiled operators, even if it has none."""
  import torch

  try:
    import torchvision
  except RuntimeError:  # they were compiled for another PyTorch
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
      del sys.modules[name]
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _KEPT.append(library)
    import torchvision
  return torchvision


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """An array of a state_dict: what goes through neither dies nor explodes, nothing is trivial."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  leaf = name.rpartition('.')[2]
  if leaf == 'num_batches_tracked':
    return np.zeros((), np.int64)
  if len(shape) > 1:
    return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
  if leaf == 'running_var':
    return rng.uniform(0.8, 1.6, shape).astype(np.float32)
  if leaf == 'weight':
    return rng.uniform(0.7, 1.1, shape).astype(np.float32)
  return rng.standard_normal(shape, np.float32) * np.float32(0.3)


def pictures(case: Case) -> np.ndarray:
  """Two that differ a lot, so that the mean over a picture means something to batch norm."""
  noise = np.random.default_rng(0).standard_normal((2, *case.size, 3), np.float32)
  return noise * np.float32([1, 2]).reshape(2, 1, 1, 1) + np.float32([0, 1]).reshape(2, 1, 1, 1)


def their_logits(case: Case, model, train: bool) -> list[np.ndarray]:
  """What PyTorch's `model` makes of the pictures, all outputs, channels last, without dropout."""
  import torch

  for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
      module.p = 0.0
  with torch.no_grad():
    outputs = model.train(train)(torch.from_numpy(pictures(case)).permute(0, 3, 1, 2))
  outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
  return [np.moveaxis(output.numpy(), 1, -1) for output in outputs]


def filled(case: Case):
  """Their model with drawn weights; skips the test where it is not installed."""
  model = build(case)
  import torch

  state = {name: drawn(name, tuple(leaf.shape)) for name, leaf in model.state_dict().items()}
  state = {name: torch.from_numpy(array) for name, array in state.items()}
  model.load_state_dict(state, assign=True)
  return model


def sampled(logits: np.ndarray) -> np.ndarray:
  """What is stored of logits."""
  return logits[:, ::8, ::8, ::5] if logits.ndim == 4 else logits[:, :20]


@functools.cache
def our_shapes(ours: nn.Module):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(ours.init, jax.random.key(0), image)


def without_values(shapes) -> dict[str, np.ndarray]:
  """Arrays of these shapes by path that take no memory."""
  return {path: np.broadcast_to(np.float32(0), x.shape) for path, x in load.flat(shapes).items()}


def drawn_variables(case: Case) -> dict:
  """Ours, with the weights that theirs has."""
  shapes = our_shapes(case.ours)
  theirs, nameless = convert.to_torch(without_values(shapes), case.tables[0])
  assert not nameless, nameless
  arrays = {name: drawn(name, x.shape) for name, x in theirs.items() if x.dtype == np.float32}
  ours, homeless = convert.from_torch(
    arrays, case.tables[0], {path: x.shape for path, x in load.flat(shapes).items()}
  )
  assert not homeless, homeless
  return nested(ours)


def nested(arrays: dict[str, np.ndarray]) -> dict:
  """Variables from arrays by path."""
  tree = {}
  for path, array in arrays.items():
    *parts, leaf = path.split('/')
    node = tree
    for part in parts:
      node = node.setdefault(part, {})
    node[leaf] = jnp.asarray(array)
  return tree
