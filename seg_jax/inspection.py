"""A look at a dataset before anyone trains on it: what it holds, and what is suspicious in it."""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from seg_jax import IGNORE, atomic, losses, pictures, settings
from seg_jax.data import transforms
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.base import Source
from seg_jax.errors import UserError

MIN_SIDE = 32  # pixels; many models shrink a picture 32-fold
MAX_ASPECT = 4
WEIGHTINGS = ('median_frequency', 'enet')
SHOWN = 6  # records in the picture of a split
RAW_VALUES = 24  # printed of those in the mask files; the JSON file has all of them
PRINTED = 5  # lines of one kind; the JSON file has all of them


def class_statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
  """Reads a whole split and counts what `losses.class_weights` wants.

  Returns:
    Two int64 [num_classes]: the pixels of each class, and the labelled pixels, of any class, of the
    images that hold the class.
  """
  class_pixels = np.zeros(source.info.num_classes, np.int64)
  image_pixels = np.zeros_like(class_pixels)
  for histogram in _in_threads(lambda i: _histogram(source[i]['label']), len(source)):
    pixels = histogram[: len(class_pixels)]
    class_pixels += pixels
    image_pixels += np.where(pixels > 0, pixels.sum(), 0)
  return class_pixels, image_pixels


def inspect(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Examines the training split and the evaluated ones of `config.data`.

  Prints a report and writes, for each split, `inspect/SPLIT.json` with every number and every
  suspicion, and `inspect/SPLIT.png` with a few records as they are, and for the training split as
  the model will see them.

  Raises `UserError` at the end if records cannot be read; all others are in the report.
  """
  data_config = ml_collections.ConfigDict(config.data)
  data_config.cache_gib = 0.0  # everything is read once
  splits = [config.train.split, *settings.eval_splits(config)]
  sources = {split: open_dataset(data_config, split, config.seed) for split in splits}
  folder = Path(workdir) / 'inspect'
  owners, trained, unreadable = {}, None, []
  for split, source in sources.items():
    report, readable = _examine(source, split, owners)
    trained = trained or report
    _add_untrained_classes(report, trained)
    path = folder / f'{split}.json'
    atomic.write_bytes(path, (json.dumps(report, indent=2) + '\n').encode())
    if readable:
      chosen = [readable[i] for i in np.linspace(0, len(readable) - 1, SHOWN, dtype=int)]
      sheet = _sheet(source, dict.fromkeys(chosen), config, augmented=report is trained)
      pictures.write_png(folder / f'{split}.png', sheet)
    print(_text(report, path))
    unreadable += report['suspicious'].get('unreadable', [])
  if unreadable:
    total = sum(map(len, sources.values()))
    raise UserError(f'{len(unreadable)} of {total} records cannot be used; {unreadable[0]}')


def _examine(source: Source, split: str, owners: dict) -> tuple[dict, list[int]]:
  """Reads every record once: the report, and the records that can be read.

  `owners` knows the pictures met so far, in this split and in others, and grows.
  """
  pixels, images, image_pixels = np.zeros((3, 256), np.int64)  # by value of the label
  sizes, suspicious, readable = collections.Counter(), collections.defaultdict(list), []
  raw_values = collections.Counter()
  scan = _in_threads(lambda i: (_raw_values(source, i), _observe(source, i)), len(source))
  for i, (raw, seen) in enumerate(
    tqdm(scan, split, len(source), unit='image', leave=False, disable=None, dynamic_ncols=True)
  ):
    raw_values.update(raw)
    if isinstance(seen, UserError):
      suspicious['unreadable'].append(str(seen))
      continue
    readable.append(i)
    sizes[seen.size] += 1
    pixels += seen.histogram
    images += seen.histogram > 0
    image_pixels += np.where(seen.histogram > 0, seen.histogram[:IGNORE].sum(), 0)
    for kind, remark in _suspicions(seen, source.info.class_names):
      suspicious[kind].append(f'{source.names[i]}: {remark}')
    if seen.picture in owners:
      owner_split, owner = owners[seen.picture]
      if owner_split == split:
        suspicious['duplicate'].append(f'{source.names[i]}: the same picture as {owner}')
      else:
        suspicious['leak'].append(f'{source.names[i]}: the same picture as {owner} ({owner_split})')
    owners.setdefault(seen.picture, (split, source.names[i]))

  count, total = source.info.num_classes, max(int(pixels.sum()), 1)
  counted = [
    {'pixels': int(p), 'share': p / total, 'images': int(n)}
    for p, n in zip(pixels, images, strict=True)
  ]
  for name in WEIGHTINGS:
    weights = losses.class_weights(name, pixels[:count], image_pixels[:count])
    for row, weight in zip(counted, weights, strict=False):
      row[name] = float(weight)
  report = {
    'dataset': source.info.name,
    'split': split,
    'num_images': len(source),
    'sizes': {f'{h} x {w}': n for (h, w), n in sizes.most_common()},
    'classes': dict(zip(source.info.class_names, counted, strict=False)),
    'ignored': counted[IGNORE],
    'raw_values': dict(raw_values.most_common()),
    'suspicious': suspicious,
  }
  return report, readable


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What is kept of a record."""

  size: tuple[int, int]
  histogram: np.ndarray  # int64 [256]
  one_colour: bool
  picture: bytes  # a digest of the pixels, so that another file format doesn't hide a duplicate


def _observe(source: Source, i: int) -> _Seen | UserError:
  try:
    record = source[i]
  except UserError as error:
    return error
  image = np.ascontiguousarray(record['image'])
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
  digest.update(image)
  return _Seen(
    size=image.shape[:2],
    histogram=_histogram(record['label']),
    one_colour=bool((image == image[0, 0]).all()),
    picture=digest.digest(),
  )


def _raw_values(source: Source, i: int) -> dict[str, int]:
  """Pixels by what stands in the mask's file; none where there is no file, or it is unreadable."""
  try:
    return source.raw_values(i) if hasattr(source, 'raw_values') else {}
  except UserError:
    return {}


def _histogram(label: np.ndarray) -> np.ndarray:
  return np.bincount(label.ravel(), minlength=256)


def _in_threads(function: Callable[[int], object], count: int) -> Iterator:
  """function(0), function(1), ... in order. Decoders and NumPy let other threads run."""
  with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
    yield from pool.imap(function, range(count))


def _suspicions(seen: _Seen, class_names: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Kinds of suspicion, each with a remark, that one record gives by itself."""
  rows, columns = seen.size
  if min(seen.size) < MIN_SIDE or max(seen.size) > MAX_ASPECT * min(seen.size):
    yield 'size', f'{rows} x {columns} (rows x columns)'
  if seen.one_colour:
    yield 'one_colour', 'the whole picture has one colour'
  ignored = seen.histogram[IGNORE] / (rows * columns)
  classes = np.flatnonzero(seen.histogram[:IGNORE])
  if ignored > 0.5:
    yield 'ignored', f'{100 * ignored:.3g} % of the label is ignored'
  if len(classes) == 1:
    yield 'one_class', f'all that is labelled is {class_names[classes[0]]}'


def _add_untrained_classes(report: dict, trained: dict) -> None:
  for name, row in report['classes'].items():
    if row['pixels'] and not trained['classes'][name]['pixels']:
      remark = f'{name}: in {row["images"]} images here, in none of {trained["split"]}'
      report['suspicious']['untrained_class'].append(remark)


def _sheet(source: Source, indices, config: ml_collections.ConfigDict, augmented: bool):
  """Picture and labels of some records, and the same of an augmented crop; uint8 [H, W, 3]."""
  palette, rows = source.info.palette, []
  for i in indices:
    record = source[i]
    versions = [record]
    if augmented:
      rng = np.random.default_rng((config.seed, i))
      versions.append(transforms.augment(record, rng, config.data))
    row = []
    for version in versions:
      image, label = pictures.enlarge(version['image'], version['label'])
      labels = pictures.overlay(image, label, palette)
      ignored = label == IGNORE
      labels[ignored] = pictures.colourise(label, palette)[ignored]
      row += [image, labels]
    rows.append(row)
  headings = ('picture', 'labels', 'augmented', 'its labels')[: len(rows[0])]
  captions = [source.names[i] for i in indices]
  return pictures.contact_sheet(rows, captions, (source.info.class_names, palette), headings)


def _text(report: dict, path: Path) -> str:
  """The report for the terminal."""
  sizes = [f'{size} ({count:,})' for size, count in report['sizes'].items()]
  more = f' and {len(sizes) - 4} more sizes' if len(sizes) > 4 else ''
  columns = '{:<{width}}  {:>14}  {:>7}  {:>8}  {:>16}  {:>7}'
  width = max(len(name) for name in ('ignored', *report['classes']))
  titles = ('pixels', 'share', 'images', *WEIGHTINGS)
  lines = [
    f'\n{report["dataset"]}, {report["split"]}: {report["num_images"]:,} images;'
    f' {path.with_suffix(".png")}',
    f'rows x columns: {", ".join(sizes[:4])}{more}',
    columns.format('', *titles, width=width),
  ]
  for name, row in (*report['classes'].items(), ('ignored', report['ignored'])):
    weights = (f'{row[weighting]:.3f}' if weighting in row else '' for weighting in WEIGHTINGS)
    counts = (f'{row["pixels"]:,}', f'{row["share"]:.2%}', f'{row["images"]:,}')
    lines.append(columns.format(name, *counts, *weights, width=width).rstrip())
  if raw := report['raw_values']:
    share = 1 / sum(raw.values())
    texts = [f'{value} ({count * share:.2%})' for value, count in list(raw.items())[:RAW_VALUES]]
    more = f' and {len(raw) - RAW_VALUES} more' if len(raw) > RAW_VALUES else ''
    lines.append(f'values in the mask files: {", ".join(texts)}{more}')
  for kind, remarks in report['suspicious'].items():
    lines.append(f'{kind.replace("_", " ")} ({len(remarks)}):')
    lines += [f'  {remark}' for remark in remarks[:PRINTED]]
    if len(remarks) > PRINTED:
      lines.append(f'  and {len(remarks) - PRINTED} more in {path}')
  return '\n'.join(lines if report['suspicious'] else [*lines, 'nothing suspicious'])
