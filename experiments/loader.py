"""How fast training pictures come: this suite's loader beside PyTorch's, on the same cores.

    python -m experiments.loader --camvid=DIR --voc=DIR --photos=DIR --photo_masks=DIR

Three kinds of data: CamVid (480 x 360 PNG; other lossless formats are converted first), PASCAL VOC
(JPEG with palette masks), and photographs with palette masks that are resized to 2048 x 1024 PNG,
the size of Cityscapes. Both systems make the same thing of them: a random scale, a random crop,
a flip one time in two, a change of colour, batches. What each does is told in `RECIPES`, which goes
into the results. PyTorch's side is what its segmentation references do with PIL images (torchvision
`references/segmentation`, v1 transforms), written out here, as torchvision need not be installed.

Writes `loader.json`, `loader.png` and `README.md` into `--out`. Nothing else should run meanwhile.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags, logging
from matplotlib.figure import Figure
from PIL import Image, ImageEnhance, ImageOps

from configs.common import get_config
from seg_jax.data import files, pipeline
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.sources import CachedSource
from seg_jax.ops.colour import photometric

_CAMVID = flags.DEFINE_string('camvid', None, 'CamVid: train, trainannot, ...', required=True)
_VOC = flags.DEFINE_string('voc', None, 'VOCdevkit/VOC2012', required=True)
_PHOTOS = flags.DEFINE_string('photos', None, 'photographs, at any depth', required=True)
_PHOTO_MASKS = flags.DEFINE_string('photo_masks', None, 'masks of the same names', required=True)
_OUT = flags.DEFINE_string('out', 'experiments/results/loader', 'where the results go')
_SECONDS = flags.DEFINE_float('seconds', 0.8, 'of a measurement')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'measurements of each setting; the median counts')

STRENGTH = 0.3  # of the change of colour
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Crops and scales of U-Net's config, of DeepLab and of Cityscapes' usual recipe. `length`: samples
# of a data set are gone through again and again as if they were so many.
KINDS = {
  'camvid': {
    'title': 'CamVid, 480 x 360 PNG',
    'split': 'train',
    'crop': (352, 480),
    'scale': (0.75, 1.5),
    'batch': 8,
    'length': 367,
  },
  'voc2012': {
    'title': 'VOC 2012, about 500 x 375 JPEG',
    'split': 'trainval',
    'crop': (513, 513),
    'scale': (0.5, 2.0),
    'batch': 8,
    'length': 2913,
  },
  'folder': {
    'title': '2048 x 1024 PNG',
    'split': 'train',
    'crop': (512, 1024),
    'scale': (0.5, 2.0),
    'batch': 4,
    'length': 2975,
  },
}

OURS = [(1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (1, 2)]  # threads (of each process), workers
CACHED = [(1, 0), (2, 0), (4, 0)]
TORCH = {'references': (0, 1, 2, 4), 'lean': (2, 4)}  # workers
CHECKED = 4  # batches that are compared between all our settings

RECIPES = {
  'ours': (
    'reads and checks the files, cuts the window that the crop needs out of the picture and resizes'
    ' only that, flips; hands out uint8 pictures and int32 labels. Colours are changed and'
    ' normalised on the device, inside the compiled training step.'
  ),
  'ours, cached': 'the same, from decoded arrays in memory; never mixed with the others.',
  'references': (
    'opens the files with PIL, resizes the whole picture and its mask (RandomResize, with the same'
    ' distribution of scales as ours), RandomHorizontalFlip, RandomCrop with padding, ColorJitter'
    ' (brightness, contrast and saturation by PIL), PILToTensor, ConvertImageDtype, Normalize;'
    ' hands out float32 pictures and int64 labels.'
  ),
  'lean': (
    'the same without ColorJitter, ConvertImageDtype and Normalize, as if these were on the device'
    " too; hands out uint8 pictures and uint8 labels: what ours does, but for the labels' type."
  ),
}


class Repeated:
  """A small source, gone through as if it were a set of `length` records."""

  def __init__(self, source, length: int):
    self._source, self._length = source, length

  def __len__(self):
    return self._length

  def __getitem__(self, index):
    return self._source[index % len(self._source)]

  def __repr__(self):
    return f'Repeated({self._source!r}, {self._length})'


class TorchDataset(torch.utils.data.Dataset):
  """`paths` of pictures and masks through the transforms of torchvision's references, on PIL."""

  def __init__(self, paths, kind: dict, lean: bool):
    self.paths, self.kind, self.lean = paths, kind, lean

  def __len__(self):
    return self.kind['length']

  def __getitem__(self, index):
    image_path, mask_path = self.paths[index % len(self.paths)]
    image, mask = Image.open(image_path).convert('RGB'), Image.open(mask_path)
    image, mask = self.resized(image, mask)
    if random.random() < 0.5:
      image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    image, mask = self.cropped(image, mask)
    if self.lean:
      return to_tensor(image), to_tensor(mask)[0]
    image = to_tensor(jittered(image)).to(torch.float32) / 255
    image = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return image, torch.as_tensor(np.array(mask), dtype=torch.int64)

  def resized(self, image, mask):
    scale = math.exp(random.uniform(*map(math.log, self.kind['scale'])))
    size = tuple(round(scale * length) for length in image.size)
    return image.resize(size, Image.BILINEAR), mask.resize(size, Image.NEAREST)

  def cropped(self, image, mask):
    rows, columns = self.kind['crop']
    missing = max(columns - image.width, 0), max(rows - image.height, 0)
    if any(missing):
      image = ImageOps.expand(image, (0, 0, *missing), fill=0)
      mask = ImageOps.expand(mask, (0, 0, *missing), fill=255)
    left = random.randint(0, image.width - columns)
    top = random.randint(0, image.height - rows)
    box = (left, top, left + columns, top + rows)
    return image.crop(box), mask.crop(box)


def jittered(image: Image.Image) -> Image.Image:
  """ColorJitter: in random order, as PIL's enhancers do them."""
  changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
  for change in random.sample(changes, 3):
    image = change(image).enhance(random.uniform(1 - STRENGTH, 1 + STRENGTH))
  return image


def to_tensor(image: Image.Image) -> torch.Tensor:
  """PILToTensor: uint8 [C, H, W]."""
  array = torch.as_tensor(np.array(image, copy=True))
  return array.view(image.height, image.width, -1).permute(2, 0, 1)


def torch_batches(paths, kind: dict, lean: bool, workers: int):
  dataset = TorchDataset(paths, kind, lean)
  loader = torch.utils.data.DataLoader(
    dataset,
    kind['batch'],
    shuffle=True,
    num_workers=workers,
    drop_last=True,
    multiprocessing_context='fork' if workers else None,  # the quickest to start
    persistent_workers=workers > 0,
  )
  while True:
    yield from loader


def measure(batches, kind: dict, buffered: int) -> dict:
  """Images a second in steady state, and a digest of the first batches.

  Threads and processes deliver in bursts of one batch each, so batches are counted by fours.
  `buffered` batches and four more go by before the clock starts.
  """
  start = time.perf_counter()
  next(batches)
  first = time.perf_counter() - start
  total = hashlib.sha256()
  for i in range(buffered + CHECKED):
    batch = next(batches)
    if i < CHECKED:
      for name in sorted(batch) if isinstance(batch, dict) else range(len(batch)):
        total.update(np.ascontiguousarray(batch[name]))
  rates = []
  for _ in range(_REPEATS.value):
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _SECONDS.value or count % 4:
      next(batches)
      count += 1
    rates.append(count * kind['batch'] / spent)
  return {
    'images_per_second': statistics.median(rates),
    'repeats': rates,
    'first_batch_seconds': first,
    'digest': total.hexdigest(),
  }


def measure_ours(data, source, kind: dict) -> list[dict]:
  """All settings of our loader; `RuntimeError` if they do not make the same pictures."""
  cached = CachedSource(source)
  for index in range(len(cached)):
    cached[index]
  results, digests = [], set()
  for system, used, settings in (('ours', source, OURS), ('ours, cached', cached, CACHED)):
    for threads, workers in settings:
      data.num_threads, data.num_workers = threads, workers
      batches = pipeline.train_batches(Repeated(used, kind['length']), data, seed=0)
      with contextlib.closing(batches):
        result = measure(batches, kind, buffered=(threads + 1) * max(workers, 1))
      digests.add(result.pop('digest'))
      results.append({'system': system, 'threads': threads, 'workers': workers, **result})
      report(results[-1])
  if len(digests) > 1:
    raise RuntimeError(f'{source!r}: the pictures depend on threads or workers')
  return results


def measure_torch(source, kind: dict) -> list[dict]:
  """All settings of PyTorch's loader, on the files of our source."""
  paths = [(str(record['image']), str(record['label'])) for record in source.records]
  results = []
  for recipe, settings in TORCH.items():
    for workers in settings:
      batches = torch_batches(paths, kind, recipe == 'lean', workers)
      with contextlib.closing(batches):
        result = measure(batches, kind, buffered=2 * workers)
      del result['digest']  # its random numbers are not ours
      results.append({'system': recipe, 'threads': 0, 'workers': workers, **result})
      report(results[-1])
  return results


def measure_kinds(folders: dict[str, Path]) -> dict:
  """`KINDS` with results; PyTorch first, whose workers are forked and want no other threads."""
  configs, sources, results = {}, {}, {}
  for name, kind in KINDS.items():
    configs[name] = data = get_config(name).data
    data.update({'dir': str(folders[name]), 'cache_gib': 0.0, 'batch_size': kind['batch']})
    data.update({'crop_size': kind['crop'], 'scale_range': kind['scale'], 'flip': True})
    sources[name] = open_dataset(data, kind['split'], 0)
    print(kind['title'], flush=True)
    results[name] = measure_torch(sources[name], kind)
  kinds = {}
  for name, kind in KINDS.items():
    print(kind['title'], flush=True)
    results[name] += measure_ours(configs[name], sources[name], kind)
    kinds[name] = kind | {
      'images': len(sources[name]),
      'device_ms': device_milliseconds(kind),
      'results': results[name],
    }
  return kinds


def device_milliseconds(kind: dict) -> float:
  """What our change of colour and normalisation takes an image, with these cores as the device."""

  @jax.jit
  def change(key, images):
    images = photometric(key, images.astype(jnp.float32), STRENGTH)
    mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
    return (images / 255 - mean) / std

  images = np.random.default_rng(0).integers(0, 256, (8, *kind['crop'], 3), np.uint8)
  times = []
  with jax.default_device(jax.devices('cpu')[0]):
    for i in range(12):
      start = time.perf_counter()
      change(jax.random.key(i), images).block_until_ready()
      times.append(time.perf_counter() - start)
  return 1000 * statistics.median(times[2:]) / len(images)


def report(result: dict) -> None:
  print(
    f'  {result["system"]:14} threads {result["threads"]}, workers {result["workers"]}:'
    f' {result["images_per_second"]:7.1f} images/s,'
    f' first batch after {result["first_batch_seconds"]:.1f} s',
    flush=True,
  )


def png_copy(camvid: Path, folder: Path) -> Path:
  """CamVid's training split with pictures in PNG, as its owners ship it."""
  pictures = sorted((camvid / 'train').iterdir())
  if all(path.suffix == '.png' for path in pictures):
    return camvid
  (folder / 'train').mkdir(parents=True)
  (folder / 'trainannot').symlink_to((camvid / 'trainannot').resolve())
  for path in pictures:
    cv2.imwrite(str(folder / 'train' / f'{path.stem}.png'), files.read_image(path)[..., ::-1])
  return folder


def large_copy(photos: Path, masks: Path, folder: Path, size=(2048, 1024)) -> Path:
  """The middle of each photograph and its palette mask at `size`, as a dataset of one's own."""
  for name in ('images', 'masks', 'splits'):
    (folder / name).mkdir(parents=True)
  images = files.files_by_stem(photos)
  for i, (path, mask) in enumerate(
    zip(images.values(), files.match_stems(images, masks), strict=True)
  ):
    options = {'size': size, 'centering': (0.5, 0.5)}
    image = ImageOps.fit(Image.open(path).convert('RGB'), method=Image.BICUBIC, **options)
    image.save(folder / 'images' / f'{i:04}.png')
    ImageOps.fit(Image.open(mask), method=Image.NEAREST, **options).save(
      folder / 'masks' / f'{i:04}.png'
    )
  (folder / 'splits/train.txt').write_text('\n'.join(f'{i:04}' for i in range(len(images))))
  (folder / 'classes.txt').write_text('\n'.join(f'class {i}' for i in range(254)))
  return folder


def best(results: list[dict], system: str) -> dict:
  return max((r for r in results if r['system'] == system), key=lambda r: r['images_per_second'])


def summary(kinds: dict) -> dict:
  """For each kind of data the best of each system, and ratios to PyTorch's."""
  rows = {}
  for name, kind in kinds.items():
    rates = {s: best(kind['results'], s)['images_per_second'] for s in RECIPES}
    ours, cached = rates['ours'], rates['ours, cached']
    rows[name] = {'best': rates} | {
      f'{title} / {recipe}': value / rates[recipe]
      for title, value in (('ours', ours), ('ours, cached', cached))
      for recipe in TORCH
    }
  return rows


def page(result: dict) -> str:
  """The results for a reader."""
  machine = result['machine']
  lines = [
    '# Loading training pictures: images a second',
    '',
    f'{machine["cores"]} cores of {machine["cpu"]}; '
    + ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    + f'. Medians of {result["repeats"]} measurements of {result["seconds"]} s or more in steady'
    ' state, all in one run. The best setting of each system:',
    '',
    '| data | ours | PyTorch, references | ratio | PyTorch, lean | ratio | ours, cached |'
    ' colours on these cores |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  for name, row in result['summary'].items():
    rates, kind = row['best'], result['kinds'][name]
    lines.append(
      f'| {kind["title"]} | {rates["ours"]:.0f} | {rates["references"]:.0f} |'
      f' **{row["ours / references"]:.1f}** | {rates["lean"]:.0f} | **{row["ours / lean"]:.1f}** |'
      f' {rates["ours, cached"]:.0f} | {kind["device_ms"]:.2f} ms an image |'
    )
  lines += ['', 'What each does:', '']
  lines += [f'- **{name}**: {text}' for name, text in result['recipes'].items()]
  lines += [
    '',
    'The last column is what the change of colour and the normalisation, which ours leaves to the'
    ' device, would take if these same cores were the device; the ratio to "lean" leaves it out on'
    ' both sides. Pictures come with the same pixels for every number of threads and workers'
    f' (compared over {CHECKED} batches of each setting). The start of workers is not counted.',
    '',
    '![bars](loader.png)',
  ]
  for name, kind in result['kinds'].items():
    lines += [
      '',
      f'## {kind["title"]}',
      '',
      f'`{name}`: {kind["images"]} pictures, crops of {kind["crop"][0]} x {kind["crop"][1]}, scales'
      f' {kind["scale"][0]} to {kind["scale"][1]}, batches of {kind["batch"]}.',
      '',
      '| system | threads | workers | images/s | first batch after |',
      '| --- | --- | --- | --- | --- |',
    ]
    lines += [
      f'| {r["system"]} | {r["threads"] or ""} | {r["workers"]} | {r["images_per_second"]:.0f} |'
      f' {r["first_batch_seconds"]:.1f} s |'
      for r in kind['results']
    ]
  return '\n'.join(lines) + '\n'


def chart(result: dict) -> Figure:
  figure = Figure(figsize=(9, 3.2), layout='constrained')
  for axes, (name, row) in zip(figure.subplots(1, 3), result['summary'].items(), strict=True):
    colours = {'ours': '#1f6fb4', 'ours, cached': '#9cc4e4'}
    rates = row['best']
    axes.barh(list(rates), list(rates.values()), color=[colours.get(s, '#b0b0b0') for s in rates])
    for i, rate in enumerate(rates.values()):
      axes.text(rate, i, f' {rate:.0f}', va='center')
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title(result['kinds'][name]['title'], fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)
  figure.supxlabel('images a second; best setting of each', fontsize=9)
  return figure


def machine() -> dict:
  names = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line]
  packages = ('torch', 'pillow', 'jax', 'grain', 'tensorstore', 'opencv-python-headless')
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'cores': len(os.sched_getaffinity(0)),
    'cpu': names[0].partition(':')[2].strip() if names else platform.processor(),
    'versions': {'python': platform.python_version(), **versions},
  }


def main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as scratch:
    folders = {
      'camvid': png_copy(Path(_CAMVID.value), Path(scratch) / 'camvid'),
      'voc2012': Path(_VOC.value),
      'folder': large_copy(Path(_PHOTOS.value), Path(_PHOTO_MASKS.value), Path(scratch) / 'large'),
    }
    kinds = measure_kinds(folders)
  result = {
    'machine': machine(),
    'seconds': _SECONDS.value,
    'repeats': _REPEATS.value,
    'recipes': RECIPES,
    'summary': summary(kinds),
    'kinds': kinds,
  }
  (out / 'loader.json').write_text(json.dumps(result, indent=2) + '\n')
  (out / 'README.md').write_text(page(result))
  chart(result).savefig(out / 'loader.png', dpi=130)
  print(json.dumps(result['summary'], indent=2))


if __name__ == '__main__':
  app.run(main)
