"""The weights that a fresh run starts with: those of another net's file, or of a run of our own.

Taken is every array whose path and shape agree. A layer whose shape follows from the number of
classes stays as it was initialised where that number is another one; any other shape that differs
is an error. What a system has and a file or run has not stays as it was initialised, too, unless it
is a part of the backbone that a file of PyTorch's has to have.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seg_jax import errors
from seg_jax.models import build_model
from seg_jax.weights import convert, files, names
from seg_jax.weights.names import Table

_SHOWN = 6  # names of a list; the others are counted


class Found(NamedTuple):
  """What there is to take."""

  title: str
  arrays: Mapping[str, np.ndarray | jax.Array]  # by our paths
  unused: Collection[str] = ()  # names of arrays that have no place here
  note: str = ''


def pretrained(
  state,
  config: ml_collections.ConfigDict,
  classes: Sequence[str],
  num_things: int,
  best_of: Callable[[Path], tuple],
):
  """The fresh `TrainState` with the weights that `config.model.pretrained` names.

  That is a file with the names of PyTorch's models, or the workdir of a run. A run's are those that
  its evaluation used: averaged weights, if it has them, and batch statistics.

  Args:
    classes: the names of this run's; that those of another run differ is told. Of them,
      `num_things` are things.
    best_of: opens a workdir, and gives step, variables and facts of its best checkpoint.

  Raises:
    UserError: there is nothing, it is damaged, or it does not fit.
  """
  path = Path(config.model.pretrained)
  if path.is_dir():
    found = of_run(path, classes, *best_of(path))
  elif path.exists():
    found = of_file(path, names.tables(config.model.to_dict()), flat(_variables(state)))
  else:
    raise errors.UserError(
      f'model.pretrained is {str(path)!r}, which does not exist; expected a file such as '
      'weights.safetensors, or the workdir of a run'
    )
  of_classes = class_layers(config, len(classes), num_things)
  return take(state, found, of_classes, config.data.channels)


def of_run(path: Path, classes: Sequence[str], step: int, variables: dict, facts: dict) -> Found:
  """What a checkpoint holds."""
  there = facts['classes']
  note = '' if there == list(classes) else f'its classes are others: {", ".join(there)}'
  arrays = flat(variables)
  return Found(f'step {step} of {path}', arrays, arrays, note)


def of_file(path: Path, tables: Sequence[Table], here: Mapping[str, jax.Array]) -> Found:
  """What a file holds, by the one of `tables` that finds the most arrays a place in `here`.

  Raises:
    UserError: no weights file, or not those of the backbone in `here`, all of it and no more.
  """
  arrays = files.read(path)
  if not tables:
    raise errors.UserError(
      f"model.pretrained is {str(path)!r}, but nobody else has this system's layers; expected the "
      'workdir of a run'
    )
  shapes = {name: leaf.shape for name, leaf in here.items()}
  fits = [(table, *convert.from_torch(arrays, table, shapes)) for table in tables]
  table, converted, unused = max(fits, key=lambda fit: len(fit[1]))
  if not converted:
    raise errors.UserError(
      f'{path} is of another model: nothing here is called {listed(sorted(arrays))} there'
    )
  missing = convert.missing(converted, table, shapes)
  if missing:
    raise errors.UserError(f'{path} lacks {listed(missing)}, which the backbone needs')
  lines = names.backwards(table.backbone)
  homeless = [name for name in unused if names.translate(lines, name.rpartition('.')[0])]
  if homeless:
    statistics = all('.running_' in name for name in homeless)
    hint = "; expected model.norm 'batch'" if statistics else ''
    raise errors.UserError(
      f'{path} is of another model: the backbone here has no place for {listed(homeless)}{hint}'
    )
  return Found(f"{path}, {table.whose}'s names", converted, unused)


def take(state, found: Found, of_classes: Collection[str], channels: int):
  """The fresh `state` with what fits of `found`; what was taken, and what not, is printed.

  The step and the optimizer stay at their start. `of_classes` are the paths of `class_layers`,
  `channels` those of a picture.

  Raises:
    UserError: nothing fits, or a shape that has to does not.
  """
  fresh = _variables(state)
  here = flat(fresh)
  both = [name for name in here if name in found.arrays]
  differing = [name for name in both if found.arrays[name].shape != here[name].shape]
  for name in differing:
    if name not in of_classes:
      raise errors.UserError(_misfit(found, name, here[name].shape, channels))
  taken = set(both) - set(differing)
  if not taken:
    raise errors.UserError(f'{found.title}: no array fits this model')
  print(f'starting from {found.title}: {len(taken)} of {len(here)} arrays taken')
  if found.note:
    print(f'  {found.note}')
  _tell('new here', here.keys() - found.arrays.keys())
  _tell(
    'of another number of classes, so new',
    [f'{name} {found.arrays[name].shape} there, {here[name].shape} here' for name in differing],
  )
  _tell('not needed', set(found.unused) - here.keys())

  def placed(path, leaf):
    name = _name(path)
    return jax.device_put(jnp.array(found.arrays[name]), leaf.sharding) if name in taken else leaf

  variables = jax.tree_util.tree_map_with_path(placed, fresh)
  params = variables.pop('params')
  # A copy, as a step gives away the memory of both.
  ema_params = jax.tree.map(jnp.copy, params) if state.ema_params else {}
  return state.replace(params=params, model_state=variables, ema_params=ema_params)


def class_layers(config: ml_collections.ConfigDict, num_classes: int, num_things: int) -> set[str]:
  """The paths of the arrays whose shape follows from the number of classes, or of things."""
  image = jax.ShapeDtypeStruct((1, *config.data.crop_size, config.data.channels), jnp.float32)
  here, other = (
    flat(jax.eval_shape(build_model(config, *counts).init, jax.random.key(0), image))
    for counts in ((num_classes, num_things), (num_classes + 2, num_things + 1))  # and one stuff
  )
  return {name for name, leaf in here.items() if leaf.shape != other[name].shape}


def flat(tree) -> dict[str, jax.Array]:
  """The leaves of variables by path, such as `params/conv1/kernel`."""
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def listed(found: Iterable[str]) -> str:
  """The first of these names, and how many more there are."""
  found = list(found)
  more = f' and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
  return ', '.join(found[:_SHOWN]) + more


def _variables(state) -> dict:
  return {'params': state.params} | state.model_state


def _misfit(found, name, shape, channels) -> str:
  there = found.arrays[name].shape
  message = f'{found.title}: {name} is {there} there, {shape} here'
  first = len(shape) == len(there) == 4 and shape[2] == channels != there[2]
  if first and (shape[:2], shape[3]) == (there[:2], there[3]):
    message += f'; expected data.channels={there[2]}'
  return message


def _tell(what, found):
  if found:
    print(f'  {what}: {listed(sorted(found))}')


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
