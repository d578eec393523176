"""What the studies share: runs that are done once, and the page that shows what came out."""

import importlib.metadata
import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from seg_jax import atomic, pictures, settings
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.models import build_model
from seg_jax.tasks import build_task
from seg_jax.training import checkpoints, loop
from seg_jax.training.logs import read_metrics
from seg_jax.training.mesh import make_mesh


def trained(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """The scores of `config` by split, as in `eval/SPLIT.json`, and its `seconds` of training.

  Trains and evaluates, or goes on, unless `workdir` holds the finished run already. `seconds` are
  those of all steps at their median speed, without compilation, evaluation and interruptions.
  """
  splits = settings.eval_splits(config)
  paths = [workdir / 'eval' / f'{split}.json' for split in splits]
  settings.for_training(config, workdir)
  finished = workdir / 'finished'
  if not finished.exists():
    print(f'\n{workdir}', flush=True)
    loop.train(config, workdir)
    if last_step(workdir) < config.train.num_steps:
      raise SystemExit(0)  # asked to stop
    atomic.write_bytes(finished, b'')
  speeds = [line['images_per_second'] for line in read_metrics(workdir) if line['split'] == 'train']
  images = config.train.num_steps * config.data.batch_size
  scores = {split: json.loads(p.read_text()) for split, p in zip(splits, paths, strict=True)}
  return scores | {'seconds': images / statistics.median(speeds)}


def predicted(
  config: ml_collections.ConfigDict, workdir: Path, split: str, indices: Sequence[int]
) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], DatasetInfo]:
  """Picture, truth and prediction of some records, by the best checkpoint of `workdir`."""
  source = open_dataset(config.data, split, config.seed)
  _, variables, info = checkpoints.load_variables(config, workdir, make_mesh(), source.info)
  task = build_task(config, info)
  predict = jax.jit(lambda variables, image: task.predict(variables, {'image': image})['label'])
  panels = []
  for index in indices:
    record = source[index]
    label = predict(variables, record['image'][None])[0]
    panels.append((record['image'], record['label'], np.asarray(label)))
  return panels, info


def num_parameters(config: ml_collections.ConfigDict, num_classes: int) -> int:
  """Of the model that `config` describes."""
  model = build_model(config, num_classes)
  image = jax.ShapeDtypeStruct((1, *config.data.crop_size, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params']))


def last_step(workdir: Path) -> int:
  with checkpoints.Checkpoints(workdir, read_only=True) as saved:
    return saved.find('last') or 0


def table(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
  """A Markdown table; floats with three digits, None as a dash."""

  def cell(value):
    return '-' if value is None else f'{value:.3g}' if isinstance(value, float) else str(value)

  columns = list(columns)
  lines = [columns, ['---'] * len(columns), *([cell(value) for value in row] for row in rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write(out: Path, name: str, result: dict, page: str, figure: Figure) -> None:
  """`NAME.json`, `NAME.png` and the page that shows it, `README.md`, in `out`."""
  atomic.write_bytes(out / f'{name}.json', (json.dumps(result, indent=2) + '\n').encode())
  pictures.save_figure(out / f'{name}.png', figure)
  atomic.write_bytes(out / 'README.md', page.encode())
  print(f'\n{page}\nwritten to {out}')


def machine() -> dict:
  """What the times were measured on."""
  cpu = Path('/proc/cpuinfo')
  names = [n for n in (cpu.read_text() if cpu.exists() else '').splitlines() if 'model name' in n]
  return {
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'cpu': names[0].partition(':')[2].strip() if names else platform.processor(),
    'versions': {name: importlib.metadata.version(name) for name in ('jax', 'flax')},
  }
