"""One split, every picture once: the measures, and the pictures that show them."""

import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from seg_jax import atomic, pictures, settings
from seg_jax.data import pipeline
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.sources import Source
from seg_jax.tasks import build_task
from seg_jax.tasks.base import cut
from seg_jax.training.checkpoints import load_variables
from seg_jax.training.mesh import mesh_of, own_rows, replicated, shard_batch, sharded
from seg_jax.training.summary import enough_memory


class Evaluator:
  """Evaluates one split as often as it is asked to, with one compilation for each picture size."""

  def __init__(
    self, task, source: Source, config: ml_collections.ConfigDict, split: str, mesh: Mesh
  ):
    self._task, self._source, self._split, self._mesh = task, source, split, mesh
    self._batches = pipeline.eval_batches(
      source,
      batch_size=config.eval.batch_size,
      size_multiple=config.eval.size_multiple,
      mean=config.data.mean,
      max_instances=config.data.max_instances,
      num_threads=config.data.num_threads,
      process=(jax.process_index(), jax.process_count()),
    )
    here = sorted(self._batches.records)
    count = min(config.eval.num_pictures, len(here)) if jax.process_index() == 0 else 0
    places = np.linspace(0, len(here) - 1, count, dtype=int)
    self._shown = {here[place] for place in places}

    def step(variables, batch):
      predictions = task.predict(variables, batch)
      return task.count(predictions, batch), {name: predictions[name] for name in said}

    said = (*task.maps, *task.tables)
    out_shardings = replicated(mesh), {name: sharded(mesh, name) for name in said}
    self._step = jax.jit(step, out_shardings=out_shardings)

  def __call__(self, step: int, variables: dict, workdir: Path) -> tuple[dict, np.ndarray | None]:
    """The measures after `step` and the contact sheet, both also written into `workdir`/eval.

    The sheet shows records spread evenly over the split, each beside its truth. Of several
    processes the first one alone writes, and makes a sheet of its part of the split.
    """
    state, shown = self._task.empty(), {}  # shown: panels by record
    progress = tqdm(
      self._batches,
      desc=self._split,
      unit='batch',
      leave=False,
      disable=True if jax.process_index() else None,
      dynamic_ncols=True,
    )
    for batch in progress:
      indices = batch.pop('index')
      arrays = {name: batch[name] for name in self._task.batch_keys}
      with enough_memory('a batch of the evaluation', 'lower eval.batch_size or data.image_scale'):
        counts, said = self._step(variables, shard_batch(arrays, self._mesh))
        counts = jax.device_get(counts)
      state = self._task.merge(state, counts)
      if not self._shown.isdisjoint(indices.tolist()):
        said = {name: own_rows(array) for name, array in said.items()}
      for row, index in enumerate(indices.tolist()):
        if index in self._shown:
          size = self._source.size(index)
          shown[index] = self._task.render(
            cut('image', batch['image'][row], size),
            {name: cut(name, array[row], size) for name, array in said.items()},
            {name: cut(name, batch[name][row], size) for name in self._task.truth},
          )
    result = {'step': step} | self._task.result(state)
    if jax.process_index():
      return result, None
    sheet = self._sheet(shown)
    self._write(workdir / 'eval', result, state, sheet)
    return result, sheet

  def _sheet(self, shown):
    indices = sorted(shown)
    return pictures.contact_sheet(
      [shown[i] for i in indices],
      [self._source.names[i] for i in indices],
      self._task.legend,
      self._task.headings,
    )

  def _write(self, directory, result, state, sheet):
    """`SPLIT.json`, `SPLIT.png`, and what the task draws, such as `confusion_SPLIT.png`."""
    atomic.write_bytes(directory / f'{self._split}.json', json.dumps(result, indent=2).encode())
    pictures.write_png(directory / f'{self._split}.png', sheet)
    for name, figure in self._task.figures(state).items():
      pictures.save_figure(directory / f'{name}_{self._split}.png', figure)


def open_splits(config: ml_collections.ConfigDict) -> dict[str, Source]:
  """The splits to evaluate, by name; the first is watched during training."""
  names = settings.eval_splits(config)
  return {name: open_dataset(config.data, name, config.seed) for name in names}


def evaluate(
  config: ml_collections.ConfigDict, workdir: Path, sources: dict[str, Source] | None = None
) -> None:
  """Judges a checkpoint of `workdir` on every split of `config.eval.splits`."""
  sources = sources or open_splits(config)
  mesh = mesh_of(config)
  info = next(iter(sources.values())).info
  step, variables, _ = load_variables(config, workdir, mesh, info)
  task = build_task(config, info)
  for split, source in sources.items():
    result, _ = Evaluator(task, source, config, split, mesh)(step, variables, workdir)
    print(f'\n{split}, {result["num_images"]} images, checkpoint of step {step}')
    print(task.table(result))
    print(f'pictures and measures: {workdir / "eval" / split}.png and .json')
