"""Training: one fixed order, from the last checkpoint to the last step."""

import functools
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from seg_jax import inspection, losses, pictures
from seg_jax.data import pipeline
from seg_jax.data.datasets import open_dataset
from seg_jax.errors import UserError
from seg_jax.ops.devices import AXIS
from seg_jax.tasks import build_task
from seg_jax.training import checkpoints, evaluation, summary
from seg_jax.training.logs import Recorder, read_metrics
from seg_jax.training.mesh import (
  mesh_of,
  over_devices,
  replicated,
  shard_batch,
  shard_steps,
  state_shardings,
  steps_like,
)
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.profile import Profiler
from seg_jax.training.step import in_calls, init_state, make_step
from seg_jax.weights.load import pretrained


def train(config: ml_collections.ConfigDict, workdir: Path) -> bool:
  """Trains `config` in `workdir`, going on from its last checkpoint, then judges the best one.

  What a step sees (pictures, augmentation, dropout) follows from the seed and the step's number
  alone, so a run that was killed and started again ends with the same bits as one that was not.
  SIGTERM and Ctrl-C save and return; whether there was one is what is returned.

  Raises:
    UserError: something that the config names is wrong.
    RunError: a loss or a gradient is not finite, or nothing can be saved.
  """
  num_steps, per_call = config.train.num_steps, config.train.steps_per_call
  mesh = mesh_of(config, training=True)
  source = open_dataset(config.data, config.train.split, config.seed)
  judged = evaluation.open_splits(config)
  split, watched = next(iter(judged.items()))
  task = build_task(config, source.info, _class_weights(config, source))
  schedule = make_schedule(config.optimizer, num_steps)
  optimizer = make_optimizer(config.optimizer, schedule)
  init_key, key = jax.random.split(jax.random.key(config.seed))
  state, shardings = _fresh_state(config, task, optimizer, mesh, init_key)
  saved = checkpoints.Checkpoints(workdir, config.train.keep_last)
  facts = checkpoints.origin(config, source)
  start, state = _started(config, workdir, saved, facts, state, source)
  profiler = None
  if start < num_steps:
    steps = _compiled_steps(config, task, optimizer, schedule, mesh, shardings, state, key)
    if config.profile and jax.process_index() == 0:
      steps = profiler = Profiler(steps, workdir)
  evaluator = evaluation.Evaluator(task, watched, config, split, mesh)
  batches = pipeline.train_batches(
    source,
    config.data,
    seed=config.seed,
    start_step=start,
    process=(jax.process_index(), jax.process_count()),
  )
  recorder = Recorder(
    workdir,
    start_step=start,
    num_steps=num_steps,
    batch_size=config.data.batch_size,
    log_every=config.train.log_every,
  )
  try:
    with saved, recorder, _StopRequest(mesh) as stop:
      for step in range(start, num_steps + 1, per_call):
        over = step == num_steps or stop.requested()
        if step > start:  # judge and save the state before the steps that follow
          score = None
          if step % config.train.eval_every == 0 or step == num_steps:
            recorder.settle()
            result, sheet = evaluator(step, state.variables, workdir)
            score = task.score(result)
            recorder.evaluated(step, split, result, task.watched, sheet)
          if over or score is not None or step % config.train.checkpoint_every == 0:
            recorder.settle()
            saved.save(step, state, facts, score)
        if over:
          break
        batch = _stack([recorder.draw(batches) for _ in range(per_call)])
        names = [[source.names[i] for i in indices] for indices in batch['index']]
        arrays = {name: batch[name] for name in task.batch_keys}
        with summary.enough_memory('a training step', summary.STEP_REMEDY):
          state, logs = steps(state, shard_steps(arrays, mesh, config.parallel), key)
        recorder.took(step + per_call, logs, names)
  finally:
    batches.close()
    if profiler:
      profiler.close()
    if jax.process_index() == 0:
      curves = pictures.curve_figure(read_metrics(workdir), task.watched, task.smaller_is_better)
      pictures.save_figure(workdir / 'curves.png', curves)
  if step < num_steps:
    print(f'stopped and saved at step {step} of {num_steps}; the same command goes on from there')
  else:
    del state  # room for the best one
    evaluation.evaluate(config, workdir, judged)
  return stop.asked


def _fresh_state(config, task, optimizer, mesh, key):
  """The state of step 0 on the devices of `mesh`, and how it is laid out there."""
  example = task.example(config.data.batch_size, config.data.crop_size)
  init = functools.partial(init_state, task, optimizer, config.optimizer.ema_decay, shapes=example)
  shardings = state_shardings(jax.eval_shape(init, key), mesh, config.optimizer.sharded)
  state = jax.jit(init, out_shardings=shardings)(key)
  print(summary.parameters(state.params))
  return state, shardings


def _started(config, workdir, saved, facts, state, source):
  """The step that the run goes on from, and its state: a checkpoint's, or given weights'."""
  num_steps, per_call = config.train.num_steps, config.train.steps_per_call
  start = saved.find('last') or 0
  if start > num_steps:
    raise UserError(f'train.num_steps is {num_steps}, but {workdir} holds step {start} already')
  if start % per_call:
    raise UserError(
      f'train.steps_per_call is {per_call}, but {workdir} goes on from step {start}; expected a '
      'divisor of it'
    )
  if start:
    state = saved.restore(start, state, facts)
    print(f'going on from step {start} of {num_steps} in {workdir}')
  elif config.model.pretrained:
    best_of = functools.partial(checkpoints.best_of, sharding=state.step.sharding)
    state = pretrained(state, config, source.info.class_names, len(source.info.things), best_of)
  elif config.model.get('frozen_backbone_norm'):
    logging.warning('model.frozen_backbone_norm without model.pretrained: no norm in the backbone')
  return start, state


def _compiled_steps(config, task, optimizer, schedule, mesh, shardings, state, key):
  """The steps of one call as a program of the devices."""
  one_step = make_step(
    task,
    optimizer,
    schedule,
    accumulation=config.train.accumulation,
    ema_decay=config.optimizer.ema_decay,
    recompute=config.train.recompute,
  )
  per_call = config.train.steps_per_call
  steps = over_devices(in_calls(one_step, per_call), shardings, mesh, config.parallel)
  example = task.example(config.data.batch_size, config.data.crop_size)
  shapes = steps_like(example, per_call, mesh, config.parallel)
  return summary.compile_step(steps, state, shapes, key)


def _class_weights(config, source):
  name = config.loss.get('class_weights', 'none')  # detectors have terms of their own
  counts = (None, None) if name == 'none' else inspection.class_statistics(source)
  return losses.class_weights(name, *counts)


def _stack(batches: list[dict]) -> dict:
  if len(batches) == 1:  # nothing to copy
    return {name: array[None] for name, array in batches[0].items()}
  return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


class _StopRequest:
  """Within it, the first SIGTERM or Ctrl-C asks to stop; a second one stops at once.

  Several processes have to stop at the same step: at each call the devices find out whether any of
  them was asked to, and the next call, at the next step, reads it, so that none waits for it.
  """

  def __init__(self, mesh: Mesh):
    self.asked = False  # the answer of the last call
    self._here, self._anywhere, self._mesh = False, None, mesh
    self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))

  def __enter__(self):
    ours = (signal.SIGTERM, signal.SIGINT)
    self._before = {s: signal.signal(s, self._handle) for s in ours}
    return self

  def requested(self) -> bool:
    """Whether to stop now; asked equally often by all processes."""
    if jax.process_count() == 1:
      self.asked = self._here
      return self.asked
    self.asked = self._anywhere is not None and bool(self._anywhere)
    flags = np.full(self._mesh.shape[AXIS] // jax.process_count(), self._here)
    self._anywhere = self._any(shard_batch({'asked': flags}, self._mesh)['asked'])
    return self.asked

  def _handle(self, *_):
    self._here = True
    self.__exit__()

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)
