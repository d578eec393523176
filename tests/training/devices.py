"""What a run on some devices comes to: `python -m tests.training.devices WORKDIR CASE ...`.

A process has as many devices as JAX_NUM_CPU_DEVICES says. It does the cases, JSON objects, one
after the other, and prints a line of JSON for each.
"""

import contextlib
import functools
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import optax

from seg_jax import runtime, settings
from seg_jax.data import pipeline
from seg_jax.data.datasets import open_dataset
from seg_jax.errors import UserError
from seg_jax.models import OF_OBJECTS
from seg_jax.ops import devices as mapped
from seg_jax.tasks import build_task
from seg_jax.tasks.semantic import SemanticTask
from seg_jax.training import evaluation, loop
from seg_jax.training.logs import read_metrics
from seg_jax.training.mesh import mesh_of, replicated, shard_batch, state_shardings, steps_like
from seg_jax.training.step import init_state
from tests.tasks.rectangles import TINY

SMALL = {  # by the name of their config
  'panoptic_fpn': TINY | {'semantic_width': 8, 'score_threshold': 0.0},
  'unet': {'width': 2, 'depth': 2},
  'segnet': {'width': 2},
  'several_decoders': {'width': 2, 'depth': 2, 'uncertainty': True},
  'deeplab_v3plus': {'backbone_width': 1 / 16, 'features': 8, 'low_features': 4, 'dropout': 0.0},
}


def case(system: str, **overrides) -> dict:
  """Ten steps of a small system on scenes of 64 x 32; `overrides` of its config, `__` for a dot."""
  return {'system': system} | {key.replace('__', '.'): value for key, value in overrides.items()}


def config_of(case: dict):
  case = dict(case)
  system = case.pop('system')
  config = importlib.import_module(f'configs.{system}').get_config()
  config.data.update({'shapes_size': (64, 32), 'crop_size': (64, 32), 'batch_size': 8})
  config.data.photometric = 0.3
  config.model.update(SMALL[system])
  # Small steps of SGD: larger ones, and Adam's, make as much of a rounding error as of a gradient,
  # and batch norms over few values and positions of maxima make the more of it.
  config.optimizer.update({'name': 'sgd', 'learning_rate': 1e-3, 'warmup_steps': 0})
  config.train.update({'num_steps': 10, 'log_every': 1, 'eval_every': 10, 'checkpoint_every': 5})
  config.eval.update({'batch_size': 40, 'size_multiple': 8, 'num_pictures': 2})
  for key, value in case.items():
    config.update_from_flattened_dict({key: value})
  return config


def outcome(case: dict, workdir: Path) -> dict:
  """The losses of the steps, the scores of the first weights, and what lies where.

  Of objects, `first_step`. A case that cannot be is told as `refused`.
  """
  if case['system'] in OF_OBJECTS:
    return first_step(case)
  config, matrices = config_of(case), []

  def figures(task, state):
    matrices.append(state['confusion'].tolist())
    return {}

  source = open_dataset(config.data, 'val', config.seed)
  task, mesh = build_task(config, source.info), mesh_of(config)
  init = jax.jit(
    lambda key: task.init(key, {'image': source[0]['image'][None]}), out_shardings=replicated(mesh)
  )
  with mock.patch.object(SemanticTask, 'figures', figures):
    judge = evaluation.Evaluator(task, source, config, 'val', mesh)
    result, _ = judge(0, init(jax.random.key(0)), workdir / 'first')
  example = task.example(config.data.batch_size, config.data.crop_size)
  parts = steps_like(example, 1, mesh, 'jit')['image']
  optimizer = optax.adam(1.0)
  state = jax.eval_shape(
    lambda key: init_state(task, optimizer, 0.0, key, example), jax.random.key(0)
  )
  shardings = state_shardings(state, mesh, config.optimizer.sharded).opt_state
  loop.train(settings.for_training(config, workdir), workdir)
  losses = [line['loss'] for line in read_metrics(workdir) if line['split'] == 'train']
  return {
    'losses': losses,
    'confusion': matrices[0] if matrices else None,
    'depth': result.get('depth'),
    'share': parts.sharding.shard_shape(parts.shape),  # of the pictures, on each device
    'split': sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(shardings)),
  }


def first_step(case: dict) -> dict:
  """The loss of the first batch and its gradient's norm, and what is counted of its predictions."""
  config = config_of(case)
  source = open_dataset(config.data, 'train', config.seed)
  task, mesh, key = build_task(config, source.info), mesh_of(config), jax.random.key(0)
  batch = next(pipeline.train_batches(source, config.data, seed=config.seed))
  batch = {name: batch[name] for name in task.batch_keys}

  def learn(variables, key, batch):
    def objective(params):
      return task.loss(variables | {'params': params}, batch, key, train=True)[0]

    loss, gradient = jax.value_and_grad(objective)(variables['params'])
    return loss, optax.tree.norm(mapped.mean(gradient))

  if config.parallel == 'pmap':
    count = jax.device_count()
    shares = {name: x.reshape(count, -1, *x.shape[1:]) for name, x in batch.items()}
    learn = jax.pmap(learn, mapped.AXIS, in_axes=(None, None, 0))
    loss, norm = learn(jax.jit(task.init)(key, batch), key, shares)
    return {'loss': float(loss[0]), 'norm': float(norm[0])}

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def step(key, batch):
    variables = task.init(key, batch)
    return *learn(variables, key, batch), task.count(task.predict(variables, batch), batch)

  loss, norm, counts = step(key, shard_batch(batch, mesh))
  result = task.result(task.merge(task.empty(), jax.device_get(counts)))
  return {'loss': float(loss), 'norm': float(norm), 'result': result}


@contextlib.contextmanager
def processes(workdir: Path, cases: list[dict], devices: int, count: int = 1):
  """`count` processes with `devices` each, started; they share `workdir`, and end with the context.

  What they print lies in `workdir`/INDEX.out and INDEX.err.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  if count > 1:
    environment |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(count)}
  workdir.mkdir(exist_ok=True)
  started = []
  try:
    for index in range(count):
      with open(workdir / f'{index}.out', 'w') as out, open(workdir / f'{index}.err', 'w') as err:
        started.append(
          subprocess.Popen(
            [sys.executable, '-m', __name__, str(workdir), *map(json.dumps, cases)],
            cwd=Path(__file__).parents[2],
            env=environment | {'JAX_PROCESS_ID': str(index)},
            stdout=out,
            stderr=err,
          )
        )
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()


def outcomes(workdir: Path, cases: list[dict], devices: int, count: int = 1) -> list[dict]:
  """Of each case, by the first of `count` processes."""
  with processes(workdir, cases, devices, count) as started:
    for index, process in enumerate(started):
      code = process.wait(timeout=600)
      assert code == 0, (workdir / f'{index}.err').read_text()[-3000:]
  lines = (workdir / '0.out').read_text().splitlines()
  return [json.loads(line) for line in lines if line.startswith('{')]


if __name__ == '__main__':
  runtime.start('JAX_NUM_PROCESSES' in os.environ)
  import tests.conftest  # noqa: F401 (strict arithmetic)

  with jax.numpy_dtype_promotion('standard'):  # optax's schedules need it
    for number, given in enumerate(sys.argv[2:]):
      try:
        result = outcome(json.loads(given), Path(sys.argv[1]) / f'case{number}')
      except UserError as error:
        result = {'refused': str(error)}
      print(json.dumps(result), flush=True)
