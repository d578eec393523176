"""From a source to batches, with Grain: random ones without end, or each record exactly once.

A batch is a dict of arrays: `image` uint8 [N, H, W, 3], `label` int32 [N, H, W] (255 = ignore),
`valid` bool [N], `index` int32 [N] (the record's number in the source); where the source has them,
`depth` float32 [N, H, W] in metres (0 = unknown), and the objects as `instances.padded` gives them:
`boxes`, `classes`, `masks`, `is_crowd`, `instance_valid`, with `size` int32 [N, 2], the rows and
columns of each picture without what is padded. A `UserError` that a source raises, in
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
  source: Source,
  data_config,
  *,
  seed: int,
  start_step: int = 0,
  process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
  """Endless batches of shuffled, augmented crops, from step `start_step` on.

  With `process` (i, n) they are the i-th of n equal parts of each batch.

  Each epoch holds every record once, in an order of its own; a batch may join two epochs, so a
  split may be smaller than a batch. What step k holds depends on `seed` and k alone (and on the
  source, the batch size and the augmentation), never on threads, processes or `start_step`, so a
  run resumes without any state of this iterator.

  `data_config.num_workers` processes each unpickle a copy of `source`, which fills a cache of
  its own, and import the main module, which needs its `if __name__ == '__main__'`.
  """

  def example(index, rng):
    record = transforms.augment(source[index], rng, data_config)
    return _example(index, record, data_config.max_instances, data_config.crop_size)

  dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(example)
  share = data_config.batch_size // process[1]
  dataset = _Share(dataset, share, *process).batch(share, drop_remainder=True, batch_fn=_stack)
  dataset = dataset[start_step:].to_iter_dataset(_read_options(data_config.num_threads))
  if data_config.num_workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own; a notebook parses none
    options = grain.MultiprocessingOptions(num_workers=data_config.num_workers)
    dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
  return _iterate(dataset)


class _Share(grain.MapDataset):
  """Of every `size` * `count` examples in a row the `index`-th `size` ones."""

  def __init__(self, parent: grain.MapDataset, size: int, index: int, count: int):
    super().__init__(parent)
    self._size, self._index, self._count = size, index, count

  def __len__(self) -> int:
    return len(self._parent) // self._count

  def __getitem__(self, at):
    batch, row = divmod(at, self._size)
    return self._parent[(batch * self._count + self._index) * self._size + row]


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """A sized iterable; every `iter` starts over, reading ahead by a batch for each thread."""

  dataset: grain.MapDataset
  num_threads: int
  records: list[int]  # those that the batches hold, in their order

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
  process: tuple[int, int] = (0, 1),
) -> EvalBatches:
  """Batches of `batch_size` that hold every record exactly once, at its native size.

  Records whose sizes are the same after rounding up to `size_multiple` share batches of that size:
  images are padded at the right and the bottom with the colour `mean` (per channel in [0, 1]),
  labels with 255. The last batch of each size is filled up with examples of `valid` False, label
  255 and `index` -1. Sizes come in the order of their first record. With `process` (i, n) they hold
  the i-th of n equal parts of each batch.
  """
  groups = {}
  for index in range(len(source)):
    shape = tuple(-(-length // size_multiple) * size_multiple for length in source.size(index))
    groups.setdefault(shape, []).append(index)
  part, share = process[0], batch_size // process[1]
  plan = [
    (shape, indices[start], indices[start : start + batch_size][part * share : (part + 1) * share])
    for shape, indices in groups.items()
    for start in range(0, len(indices), batch_size)
  ]

  def load(batch):
    (height, width), first, indices = batch

    def example(index):
      record = source[index]
      rows, columns = record['label'].shape
      record = transforms.pad(record, (0, height - rows, 0, width - columns), mean)
      return _example(index, record, max_instances, (rows, columns), crowds=True)

    examples = [example(index) for index in indices]
    like = examples[0] if examples else example(first)
    filler = {key: np.zeros_like(array) for key, array in like.items()}  # valid: False
    filler |= {'label': np.full_like(filler['label'], IGNORE), 'index': np.int32(-1)}
    return _stack([*examples, *[filler] * (share - len(indices))])

  records = [index for _, _, indices in plan for index in indices]
  return EvalBatches(grain.MapDataset.source(plan).map(load), num_threads, records)


def _example(
  index: int, record: transforms.Record, max_instances: int, size, crowds=False
) -> Batch:
  if 'instances' in record:
    objects = instances.padded(record, max_instances, crowds=crowds)
    record = {key: array for key, array in record.items() if key != 'instances'} | objects
    record['size'] = np.array(size, np.int32)
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
