"""From a source to batches, with Grain: random ones without end, or each record exactly once.

A batch is a dict of arrays: `image` uint8 [N, H, W, 3], `label` int32 [N, H, W] (255 = ignore),
`valid` bool [N], `index` int32 [N] (the record's number in the source); where the source has them,
`depth` float32 [N, H, W] in metres (0 = unknown), and the objects as `instances.padded` gives them:
`boxes`, `classes`, `masks`, `is_crowd`, `instance_valid`. A `UserError` that a source raises, in
whatever thread or process, reaches whoever iterates.
"""

import atexit
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags

from seg_jax import IGNORE
from seg_jax.data import instances, transforms
from seg_jax.data.datasets.sources import Source

cv2.setNumThreads(1)  # Grain's threads each have a picture to work on; more would be in the way

Batch = dict[str, np.ndarray]


def train_batches(
  source: Source, data_config, *, seed: int, start_step: int = 0
) -> Iterator[Batch]:
  """Endless batches of shuffled, augmented crops, from step `start_step` on.

  Each epoch holds every record once, in an order of its own; a batch may join two epochs, so a
  split may be smaller than a batch. What step k holds depends on `seed` and k alone (and on the
  source, the batch size and the augmentation), never on threads, processes or `start_step`, so a
  run resumes without any state of this iterator.

  `data_config.num_workers` processes each unpickle a copy of `source`, which fills a cache of
  its own, and import the main module, which needs its `if __name__ == '__main__'`.
  """

  def example(index, rng):
    record = transforms.augment(source[index], rng, data_config)
    return _example(index, record, data_config.max_instances)

  dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(example)
  dataset = dataset.batch(data_config.batch_size, drop_remainder=True, batch_fn=_stack)[start_step:]
  dataset = dataset.to_iter_dataset(_read_options(data_config.num_threads))
  if data_config.num_workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own; a notebook parses none
    options = grain.MultiprocessingOptions(num_workers=data_config.num_workers)
    dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
  return _iterate(dataset)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """A sized iterable; every `iter` starts over, reading ahead by a batch for each thread."""

  dataset: grain.MapDataset
  num_threads: int

  def __len__(self) -> int:
    return len(self.dataset)

  def __iter__(self) -> Iterator[Batch]:
    return _iterate(self.dataset.to_iter_dataset(_read_options(self.num_threads)))


def eval_batches(
  source: Source,
  *,
  batch_size: int,
  size_multiple: int,
  mean: tuple[float, float, float],
  max_instances: int,
  num_threads: int,
) -> EvalBatches:
  """Batches of `batch_size` that hold every record exactly once, at its native size.

  Records whose sizes are the same after rounding up to `size_multiple` share batches of that size:
  images are padded at the right and the bottom with the colour `mean` (per channel in [0, 1]),
  labels with 255. The last batch of each size is filled up with examples of `valid` False, label
  255 and `index` -1. Sizes come in the order of their first record.
  """
  groups = {}
  for index in range(len(source)):
    shape = tuple(-(-length // size_multiple) * size_multiple for length in source.size(index))
    groups.setdefault(shape, []).append(index)
  plan = [
    (shape, indices[start : start + batch_size])
    for shape, indices in groups.items()
    for start in range(0, len(indices), batch_size)
  ]

  def load(batch):
    (height, width), indices = batch
    examples = []
    for index in indices:
      record = source[index]
      rows, columns = record['label'].shape
      record = transforms.pad(record, (0, height - rows, 0, width - columns), mean)
      examples.append(_example(index, record, max_instances))
    filler = {key: np.zeros_like(array) for key, array in examples[0].items()}  # valid: False
    filler |= {'label': np.full_like(filler['label'], IGNORE), 'index': np.int32(-1)}
    examples += [filler] * (batch_size - len(indices))
    return _stack(examples)

  return EvalBatches(grain.MapDataset.source(plan).map(load), num_threads)


def _example(index: int, record: transforms.Record, max_instances: int) -> Batch:
  if 'instances' in record:
    objects = instances.padded(record, max_instances)
    record = {key: array for key, array in record.items() if key != 'instances'} | objects
  return {**record, 'valid': np.True_, 'index': np.int32(index)}


def _stack(examples: Sequence[Batch]) -> Batch:
  """A batch; labels are uint8 up to here, for speed."""
  return {
    key: np.stack(
      [example[key] for example in examples], dtype=np.int32 if key == 'label' else None
    )
    for key in examples[0]
  }


def _read_options(num_threads: int) -> grain.ReadOptions:
  """Each thread makes a whole batch, and one more waits; Grain's default buffer is 500 of them."""
  return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads + 1)


def _start_worker(worker_index: int, worker_count: int):
  """Ties a worker's life to the main process: not shorter by a signal, not longer by its death.

  Terminals send Ctrl-C, and schedulers SIGTERM, to all of them, but only the main process knows
  when to stop; and a worker whose main process is gone would wait for it for ever.
  """

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=follow, daemon=True).start()


_running = weakref.WeakSet()


@atexit.register
def _stop_running():
  """Stops what an uncaught error's traceback or a notebook still holds when Python ends.

  Grain's iterators fail, with a page of complaints, if they are let go after their modules.
  """
  for batches in list(_running):
    batches.close()


def _iterate(dataset: grain.IterDataset) -> Iterator[Batch]:
  """Stops Grain's threads and processes on an error and when the caller abandons the iterator."""

  def generate():
    with contextlib.closing(iter(dataset)) as iterator:
      yield from iterator

  batches = generate()
  _running.add(batches)
  return batches
