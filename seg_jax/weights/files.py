"""Files of named arrays: `.safetensors`, and PyTorch's own where PyTorch is installed."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from seg_jax import atomic, errors

_FLOATS = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': jnp.bfloat16.dtype}
_WRAPPERS = ('state_dict', 'model')  # the keys under which training scripts keep the arrays
_COUNTER = 'num_batches_tracked'  # of PyTorch's batch norm: steps, which nothing reads


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a weights file by their names, float32; `num_batches_tracked` is left out.

  A `.pth` is read by PyTorch's loader of plain arrays, which runs nothing that the file holds.

  Raises:
    UserError: no such file, another kind of file, a damaged one, one with code in it, one that
      needs PyTorch where there is none, or arrays that are not floats.
  """
  readers = {'.safetensors': _read_safetensors} | dict.fromkeys(
    ('.pth', '.pt', '.bin'), _read_torch
  )
  if path.suffix not in readers:
    raise errors.UserError(f'{path} is no weights file; expected one of {", ".join(readers)}')
  try:
    arrays = readers[path.suffix](path)
  except OSError as error:
    raise errors.UserError(f'{path} cannot be read ({error.strerror or error})') from error
  if not arrays:
    raise errors.UserError(f'{path} holds no arrays')
  return {name.removeprefix('module.'): array for name, array in arrays.items()}


def _read_safetensors(path):
  try:
    found = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise errors.UserError(f'{path} is no whole .safetensors file ({error})') from error
  arrays = {}
  for name, array in found:
    if not name.endswith(_COUNTER):
      _check(path, name, array['dtype'], array['dtype'] in _FLOATS)
      values = np.frombuffer(array['data'], _FLOATS[array['dtype']])
      arrays[name] = values.reshape(array['shape']).astype(np.float32)
  return arrays


def _read_torch(path):
  try:
    import torch
  except ImportError as error:
    raise errors.UserError(
      f"{path} needs PyTorch to be read: pip install 'torch>=2.4', or convert it to .safetensors"
    ) from error
  try:
    tree = torch.load(path, map_location='cpu', weights_only=True)
  except (OSError, MemoryError):
    raise
  except pickle.UnpicklingError as error:
    code = re.search(r'GLOBAL (\S+)', str(error))
    held = f'it holds {code[1]}, which is no array' if code else 'it holds more than arrays'
    raise errors.UserError(f'{path} is refused: {held}; nothing of it was run') from error
  except Exception as error:  # whatever a damaged file leads to
    reason = str(error).partition('\n')[0] or type(error).__name__
    raise errors.UserError(f'{path} is no whole file of torch.save ({reason[:200]})') from error
  for key in _WRAPPERS:
    if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
      tree = tree[key]
  if not isinstance(tree, Mapping):
    raise errors.UserError(f'{path} holds a {type(tree).__name__}; expected a state_dict')
  arrays = {}
  for name, array in tree.items():
    if isinstance(array, torch.Tensor) and not (name := str(name)).endswith(_COUNTER):
      _check(path, name, array.dtype, array.is_floating_point())
      arrays[name] = array.detach().float().numpy()
  return arrays


def _check(path, name, dtype, good):
  if not good:
    raise errors.UserError(f'{path}: {name} is {dtype}; expected floats')


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes `arrays` as `.safetensors`, whole or not at all; makes the folder."""
  # The package stores the memory as it lies, so transposed arrays would come out wrong.
  whole = {name: np.asarray(array, order='C') for name, array in arrays.items()}
  atomic.write_bytes(path, safetensors.numpy.save(whole, metadata={'format': 'pt'}))
