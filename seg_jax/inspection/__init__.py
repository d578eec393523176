"""A look at a dataset before anyone trains on it: what it holds, and what is suspicious in it."""

import json
from pathlib import Path

import ml_collections
import numpy as np

from seg_jax import atomic, pictures, settings
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.sources import Source
from seg_jax.errors import UserError
from seg_jax.inspection import suspicions, text
from seg_jax.inspection.examine import examine, histogram, in_threads
from seg_jax.inspection.sheet import draw

SHOWN = 6  # records in the picture of a split


def class_statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
  """Reads a whole split and counts what `losses.class_weights` wants.

  Returns:
    Two int64 [num_classes]: the pixels of each class, and the labelled pixels, of any class, of the
    images that hold the class.
  """
  class_pixels = np.zeros(source.info.num_classes, np.int64)
  image_pixels = np.zeros_like(class_pixels)
  for counts in in_threads(lambda i: histogram(source[i]['label']), len(source)):
    pixels = counts[: len(class_pixels)]
    class_pixels += pixels
    image_pixels += np.where(pixels > 0, pixels.sum(), 0)
  return class_pixels, image_pixels


def inspect(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Examines the training split and the evaluated ones of `config.data`.

  Prints a report and writes, for each split, `inspect/SPLIT.json` with every number and every
  suspicion, and `inspect/SPLIT.png` with a few records as they are, and for the training split as
  the model will see them.

  Raises `UserError` at the end if splits or records cannot be read; all others are in the report.
  """
  sources, failures = _open(config)
  folder = Path(workdir) / 'inspect'
  owners, trained, unreadable = {}, None, []
  for split, error in failures.items():
    _write(folder, split, {'dataset': config.data.name, 'split': split, 'error': error})
  print(text.about(next(iter(sources.values())).info))
  for split, source in sources.items():
    report, readable = examine(source, split, owners, config.data.max_instances)
    if split == config.train.split:
      trained = report
    elif trained:
      suspicions.add_untrained_classes(report, trained)
    _write(folder, split, report)
    if readable:
      chosen = [readable[i] for i in np.linspace(0, len(readable) - 1, SHOWN, dtype=int)]
      sheet = draw(source, dict.fromkeys(chosen), config, augmented=report is trained)
      pictures.write_png(folder / f'{split}.png', sheet)
    print(text.of(report, folder / f'{split}.json'))
    unreadable += report['suspicious'].get('unreadable', [])
  _fail(failures, unreadable, sum(map(len, sources.values())))


def _open(config: ml_collections.ConfigDict) -> tuple[dict[str, Source], dict[str, str]]:
  """The splits that can be opened, and why the others cannot; an error if none can be."""
  data_config = ml_collections.ConfigDict(config.data)
  data_config.cache_gib = 0.0  # everything is read once
  sources, failures = {}, {}
  for split in dict.fromkeys([config.train.split, *settings.eval_splits(config)]):
    try:
      sources[split] = open_dataset(data_config, split, config.seed)
    except UserError as error:
      failures[split] = str(error)
  if not sources:
    raise UserError('; '.join(dict.fromkeys(failures.values())))
  return sources, failures


def _write(folder: Path, split: str, report: dict) -> None:
  atomic.write_bytes(folder / f'{split}.json', (json.dumps(report, indent=2) + '\n').encode())


def _fail(failures: dict[str, str], unreadable: list[str], total: int) -> None:
  told = [f"split '{split}' cannot be used: {error}" for split, error in failures.items()]
  if unreadable:
    told.append(f'{len(unreadable)} of {total} records cannot be used; {unreadable[0]}')
  if told:
    raise UserError('; '.join(told))
