"""Checkpoints: written while training goes on, whole or not at all, the last ones and the best."""

import contextlib
import math
import operator
import shutil
from pathlib import Path

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import checkpoint_managers as policies

from seg_jax import errors, settings
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.data.datasets.sources import Source
from seg_jax.tasks import build_task
from seg_jax.training.mesh import placed, replicated
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state

_of_metrics = operator.itemgetter('score')  # the one number that Orbax keeps beside a step
_DISCARDED = 'discarded'  # a step is moved there at once, then deleted file by file


class Checkpoints:
  """The checkpoints of one run, `DIR/checkpoints/STEP/`.

  Each holds the state and a small JSON of `facts` about the run. A save is asynchronous, and its
  directory gets its name only when everything is in it, and loses it before anything is deleted,
  so a kill or a full disk costs that save and nothing before it.
  """

  def __init__(self, workdir: Path, keep_last: int = 1, *, read_only: bool = False):
    best = policies.BestN(get_metric_fn=_of_metrics, n=1)
    self._directory = workdir.absolute() / 'checkpoints'
    options = ocp.CheckpointManagerOptions(
      best_fn=_of_metrics,  # without it Orbax does not write the metrics
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_last), best]),
      cleanup_tmp_directories=not read_only,  # they may be another process's save under way
      create=not read_only,
      read_only=read_only,
      todelete_subdir=None if read_only else _DISCARDED,
    )
    handlers = {'state': ocp.StandardCheckpointHandler(), 'facts': ocp.JsonCheckpointHandler()}
    with _told_as(errors.UserError, f'{self._directory} cannot be opened'):
      self._manager = ocp.CheckpointManager(
        self._directory, item_handlers=handlers, options=options
      )
    if not read_only:
      self._empty_discarded()

  def save(self, step: int, state, facts: dict, score: float | None = None) -> None:
    """Starts to save; `score` is the watched measure where it is known at this step."""
    if step in self._manager.all_steps():
      return
    self._empty_discarded()
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts))
    metrics = {'score': -math.inf if score is None else float(score)}
    with self._writable():
      self._manager.save(step, args=args, metrics=metrics, force=True)

  def _empty_discarded(self) -> None:
    for path in (self._directory / _DISCARDED).glob('*'):
      shutil.rmtree(path, ignore_errors=True)

  def _writable(self):
    message = f'nothing more can be saved in {self._directory}, what is there is whole'
    return _told_as(errors.RunError, message)

  def find(self, which: str) -> int | None:
    """The step of the 'best' or 'last' checkpoint or of a given number; None if there is none.

    Several processes take what the first one finds: a shared folder may show others less of it.

    Raises:
      UserError: a number that is not there.
    """
    step = self._find(which)
    if jax.process_count() > 1:
      told = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if step is None else step)))
      step = None if told < 0 else told
    return step

  def _find(self, which):
    steps = sorted(self._manager.all_steps())
    if not steps or which == 'last':
      return steps[-1] if steps else None
    if which == 'best':
      scores = {step: self._score(step) for step in steps}
      return max(steps, key=lambda step: (scores[step], step))
    if not which.isdigit() or int(which) not in steps:
      kept = ', '.join(map(str, steps))
      raise errors.UserError(
        f'eval.checkpoint is {which!r}; expected best, last or one of the steps kept: {kept}'
      )
    return int(which)

  def _score(self, step: int) -> float:
    with _readable(self._directory / str(step)):
      return _of_metrics(self._manager.metrics(step))

  def restore(self, step: int, like, facts: dict):
    """The state saved at `step`, as `like` (arrays or their shapes) is typed and placed.

    Raises:
      UserError: another model than `like`, other facts than `facts`, or unreadable files.
    """
    place = self._directory / str(step)
    saved = self.facts(step)
    for name, value in facts.items():
      if saved.get(name) != value:
        raise errors.UserError(f'{place}: {name} {saved.get(name)} there, but {value} here')
    with _readable(place):
      shapes = self._manager.item_metadata(step)['state'].tree
    _compare(place, shapes, like)
    target = ocp.args.StandardRestore(jax.tree.map(_abstract, like))
    with _readable(place):
      return self._manager.restore(step, args=ocp.args.Composite(state=target))['state']

  def variables(self, step: int, sharding: NamedSharding) -> dict:
    """What evaluation used at `step`, of whatever model, as plain dicts of arrays.

    Raises:
      UserError: unreadable files.
    """
    with _readable(self._directory / str(step)):
      shapes = self._manager.item_metadata(step)['state'].tree
      target = ocp.args.StandardRestore(placed(shapes, sharding))
      state = self._manager.restore(step, args=ocp.args.Composite(state=target))['state']
    return {'params': state['ema_params'] or state['params']} | state['model_state']

  def facts(self, step: int) -> dict:
    """The facts that were saved with `step`."""
    place = self._directory / str(step)
    with _readable(place):
      saved = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))
      return dict(saved['facts'])

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    """Waits for the save under way; tells what went wrong in it, if nothing else did before."""
    with self._writable() if kind is None else contextlib.suppress(Exception):
      self._manager.wait_until_finished()
      self._empty_discarded()
    self._manager.close()


def meaning(config: ml_collections.ConfigDict, info: DatasetInfo) -> dict:
  """The facts that give a checkpoint's numbers their meaning."""
  return {'model': config.model.name, 'classes': list(info.class_names)}


def origin(config: ml_collections.ConfigDict, source: Source) -> dict:
  """All facts of a training run: its meaning, and what the bits of its next steps follow from."""
  return meaning(config, source.info) | {
    'dataset': source.info.name,
    'palette': source.info.palette.tolist(),
    'things': list(source.info.things),
    'ids': list(source.info.ids),
    'pictures': repr(source),
    'seed': config.seed,
    'batch_size': config.data.batch_size,
  }


def best_of(workdir: Path, sharding: NamedSharding) -> tuple[int, dict, dict]:
  """Another run's best checkpoint, of whatever model: its step, variables and facts.

  Raises:
    UserError: `workdir`, which `model.pretrained` named, holds none, or it is damaged.
  """
  if not settings.has_checkpoint(workdir):
    raise errors.UserError(f'model.pretrained is {str(workdir)!r}, which holds no checkpoint')
  with Checkpoints(workdir, read_only=True) as saved:
    step = saved.find('best')
    if step is None:  # a save was cut short
      raise errors.UserError(
        f'model.pretrained is {str(workdir)!r}, which holds no whole checkpoint'
      )
    return step, saved.variables(step, sharding), saved.facts(step)


def load_variables(
  config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh, info: DatasetInfo | None = None
) -> tuple[int, dict, DatasetInfo]:
  """The checkpoint that `config.eval.checkpoint` names: its step, its variables and its classes.

  With `info`, its classes have to be those. A run that is saving to `workdir` is not disturbed.

  Raises:
    UserError: there is none, it is damaged, or of another model or other classes.
  """
  if not settings.has_checkpoint(workdir):
    raise errors.UserError(f'{workdir} holds no checkpoint; train first, or give --workdir')
  with Checkpoints(workdir, read_only=True) as saved:
    step = saved.find(config.eval.checkpoint)
    if step is None:  # a save was cut short
      raise errors.UserError(f'{workdir} holds no whole checkpoint; train first')
    if info is None:
      there = saved.facts(step)
      with _readable(workdir / 'checkpoints' / str(step)):
        info = DatasetInfo(
          there['dataset'],
          tuple(there['classes']),
          np.array(there['palette'], np.uint8),
          things=tuple(there.get('things', ())),
          ids=tuple(there.get('ids', ())),
        )
    task = build_task(config, info)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    example = task.example(1, config.data.crop_size)
    like = jax.eval_shape(
      lambda key: init_state(task, optimizer, config.optimizer.ema_decay, key, example),
      jax.random.key(0),
    )
    state = saved.restore(step, placed(like, replicated(mesh)), meaning(config, info))
    return step, state.variables, info


def _abstract(leaf):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


@contextlib.contextmanager
def _told_as(kind: type[Exception], message: str):
  """Tells whatever Orbax raises as `kind`, but for a lack of memory or of another process."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise kind(f'{message} ({reason[:200]})') from error


def _readable(place: Path):
  return _told_as(errors.UserError, f'{place} is no whole checkpoint; remove it to use another')


def _shapes(tree) -> dict[str, tuple]:
  """Shape by path, alike for a state and for the metadata of a saved one."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape for path, leaf in leaves
  }


def _compare(place, saved, like) -> None:
  """Says what differs before Orbax does, whose words for it help nobody."""
  there, here = _shapes(saved), _shapes(like)
  for path in sorted(there.keys() | here.keys()):
    if there.get(path) != here.get(path):
      raise errors.UserError(
        f'{place} is of another model: {path} is {there.get(path, "missing")} there, '
        f'but {here.get(path, "missing")} here'
      )
