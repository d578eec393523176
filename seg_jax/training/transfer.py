"""A fresh run that starts with the weights of another one, as far as they fit."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from seg_jax import errors, settings
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.step import TrainState


def start_from(state: TrainState, workdir: Path, classes: Sequence[str]) -> TrainState:
  """`state` with the weights of the best checkpoint in `workdir`, and what was taken, printed.

  Taken are the arrays that the evaluation there used (averaged weights, if it has them, and batch
  statistics), wherever path and shape agree; the models may differ. Everything else stays as it is:
  the new layers at their initial values, the step and the optimizer at their start. If that run
  had other `classes` than this one, so has a last layer that fits, which is told.

  Raises:
    UserError: `workdir` holds no checkpoint, it is damaged, or nothing in it fits.
  """
  if not settings.has_checkpoint(workdir):
    raise errors.UserError(f'train.init_from is {str(workdir)!r}, which holds no checkpoint')
  with Checkpoints(workdir, read_only=True) as saved:
    step = saved.find('best')
    if step is None:  # a save was cut short
      raise errors.UserError(
        f'train.init_from is {str(workdir)!r}, which holds no whole checkpoint'
      )
    there, facts = _flat(saved.variables(step, state.step.sharding)), saved.facts(step)
  fresh = {'params': state.params} | state.model_state
  here = _flat(fresh)
  taken = {path for path, x in here.items() if path in there and there[path].shape == x.shape}
  if not taken:
    raise errors.UserError(
      f'train.init_from: no array of {workdir}, a {facts["model"]}, fits this model'
    )

  def take(path, leaf):
    return there[name] if (name := _name(path)) in taken else leaf

  variables = jax.tree_util.tree_map_with_path(take, fresh)
  print(f'starting from step {step} of {workdir}: {len(taken)} of {len(here)} arrays taken')
  if facts['classes'] != list(classes):
    print(f'  its classes are others: {", ".join(facts["classes"])}')
  shapes = [
    f'{path} {there[path].shape} there, {here[path].shape} here'
    for path in here.keys() & there.keys() - taken
  ]
  _tell('new here', here.keys() - there.keys())
  _tell('of another shape', shapes)
  _tell('not needed', there.keys() - here.keys())
  params = variables.pop('params')
  # A copy, as a step gives away the memory of both.
  ema_params = jax.tree.map(jnp.copy, params) if state.ema_params else {}
  return state.replace(params=params, model_state=variables, ema_params=ema_params)


def _tell(what, names):
  if names:
    print(f'  {what}: {", ".join(sorted(names))}')


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _flat(tree) -> dict[str, jax.Array]:
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
