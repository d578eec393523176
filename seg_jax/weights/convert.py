"""Arrays of PyTorch's layers in our shapes and by our paths, and back.

A convolution's [D, C, rows, columns] is [rows, columns, C, D] here, a transposed one's [C, D, rows,
columns] too, a matrix [D, C] is [C, D].
Where a convolution covers the whole map here, a matrix over that map, flattened channel by channel,
[D, C * rows * columns], is that convolution. A bias before a batch norm that has none here is taken
from the norm's running mean: `x + bias - mean`.
"""

from collections.abc import Mapping

import numpy as np

from seg_jax.weights import names
from seg_jax.weights.names import Table

_OURS = {
  'weight': ('params/{}/kernel', 'params/{}/scale'),
  'bias': ('params/{}/bias',),
  'running_mean': ('batch_stats/{}/mean',),
  'running_var': ('batch_stats/{}/var',),
}
_THEIRS = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def from_torch(
  arrays: Mapping[str, np.ndarray], table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """`arrays` by the paths of a model of `shapes`, and the names that it has no place for.

  A shape that does not fit stays as it comes out.
  """
  lines = names.backwards(table.names)
  converted, biases, homeless = {}, {}, []
  for name, array in arrays.items():
    layer, _, leaf = name.rpartition('.')
    ours = names.translate(lines, layer)
    paths = [path.format(ours) for path in _OURS.get(leaf, ()) if ours]
    path = next((path for path in paths if path in shapes), None)
    if path:
      if path.endswith('/kernel'):
        if names.translate(table.names, ours).endswith(' transposed'):
          array = array.swapaxes(0, 1)
        array = _kernel(array, shapes[path])
      converted[path] = array
      if leaf == 'running_var':
        converted[path] = array + np.float32(table.extra_variance)
    elif leaf == 'bias' and ours and (mean := f'batch_stats/{_norm_of(ours)}/mean') in shapes:
      biases[mean] = array
    else:
      homeless.append(name)
  for mean, bias in biases.items():
    converted[mean] = converted.get(mean, np.zeros_like(bias)) - bias
  return converted, homeless


def to_torch(
  arrays: Mapping[str, np.ndarray], table: Table
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Our arrays by path as PyTorch's by name, and the paths that have no name there.

  What theirs has besides is there, too: biases of zeros, and batch norm's `num_batches_tracked`.
  """
  converted, nameless = {}, []
  for path, array in arrays.items():
    layer, _, leaf = path.partition('/')[2].rpartition('/')
    theirs = names.translate(table.names, layer)
    if theirs is None:
      nameless.append(path)
      continue
    name, _, more = theirs.partition(' ')
    if leaf == 'kernel':
      array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
      if more == 'transposed':
        array = array.swapaxes(0, 1)
      if more == 'matrix':
        array = array.reshape(len(array), -1)
      if more == 'pixel':
        array = array.reshape(*array.shape[:2], 1, 1)
      if more == 'bias' and f'params/{layer}/bias' not in arrays:
        converted[f'{name}.bias'] = np.zeros(len(array), np.float32)
    elif leaf == 'mean':
      converted[f'{name}.num_batches_tracked'] = np.zeros((), np.int64)
    elif leaf == 'var':
      array = array - np.float32(table.extra_variance)
    converted[f'{name}.{_THEIRS[leaf]}'] = array
  return converted, nameless


def missing(
  converted: Mapping[str, np.ndarray], table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """Their names of what a backbone of `shapes` has and `converted` has not."""
  found = []
  for path in shapes.keys() - converted.keys():
    layer, _, leaf = path.partition('/')[2].rpartition('/')
    if theirs := names.translate(table.backbone, layer):
      found.append(f'{theirs.partition(" ")[0]}.{_THEIRS[leaf]}')
  return sorted(found)


def _kernel(array, shape):
  if array.ndim == 2 and len(shape) == 4 and array.shape[1] % (shape[0] * shape[1]) == 0:
    array = array.reshape(len(array), -1, *shape[:2])
  elif array.shape[2:] == (1, 1) and len(shape) == 2:  # a convolution where ours is a matrix
    array = array[:, :, 0, 0]
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _norm_of(layer: str) -> str:
  """conv1's is norm1, fc6's fc6_norm."""
  parent, slash, name = layer.rpartition('/')
  norm = name.replace('conv', 'norm') if 'conv' in name else f'{name}_norm'
  return f'{parent}{slash}{norm}'
