"""Labels for pictures of a user: a palette PNG and an overlay for each."""

import collections
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from seg_jax import pictures
from seg_jax.data import bands, files, transforms
from seg_jax.errors import UserError
from seg_jax.tasks import build_task
from seg_jax.training import checkpoints
from seg_jax.training.mesh import make_mesh
from seg_jax.training.summary import enough_memory


def predict(config: ml_collections.ConfigDict, workdir: Path, inputs: Sequence[str]) -> None:
  """Writes `predict/labels/NAME.png`, classes with a palette, and `predict/overlays/NAME.png`.

  Args:
    inputs: files, folders (searched through) or globs of pictures of any size.

  Raises:
    UserError: no picture found, or, once all others are done, pictures that cannot be read.
  """
  outputs = dict(_outputs(find_pictures(inputs)))
  step, variables, info = checkpoints.load_variables(config, workdir, make_mesh())
  task = build_task(config, info)
  label_of = jax.jit(lambda variables, image: task.predict(variables, {'image': image})['label'][0])
  read_image = bands.readers(config.data)['read_image']
  directory, faults = workdir / 'predict', []
  for path, name in tqdm(outputs.items(), 'predict', unit='image', dynamic_ncols=True):
    try:
      image = read_image(path)
    except UserError as fault:
      faults.append(str(fault))
      continue
    height, width = image.shape[:2]
    multiple = config.eval.size_multiple  # so that few sizes are compiled
    margins = (0, -height % multiple, 0, -width % multiple)
    padded = transforms.pad({'image': image}, margins, config.data.mean)['image']
    with enough_memory(str(path), 'lower data.image_scale'):
      label = np.asarray(label_of(variables, padded[None]))
    label = label[:height, :width].astype(np.uint8)
    pictures.write_palette_png(directory / 'labels' / f'{name}.png', label, info.palette)
    drawn = pictures.overlay(image, label, info.palette)
    pictures.write_png(directory / 'overlays' / f'{name}.png', drawn)
  print(f'{len(outputs) - len(faults)} pictures labelled by step {step}: {directory}')
  if faults:
    raise UserError(f'{len(faults)} of {len(outputs)} pictures cannot be used; {faults[0]}')


def find_pictures(inputs: Sequence[str]) -> list[Path]:
  """The pictures that `inputs` name, each once, in their order.

  Raises:
    UserError: an input that names none.
  """
  if not inputs:
    raise UserError('--mode=predict needs pictures: files, folders or globs, after the flags')
  found = {}
  for given in inputs:
    path = Path(given)
    if path.is_dir():
      matches = files.pictures_below(path)
    else:
      matches = [path] if path.exists() else sorted(map(Path, glob.glob(given, recursive=True)))
    if not matches:
      raise UserError(f'{given}: no picture there; expected a file, a folder or a glob')
    found |= dict.fromkeys(matches)
  return list(found)


def _outputs(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
  """(picture, its name below the output folder): the tree below the pictures' common folder.

  Pictures that differ in their suffix alone keep it in their names.
  """
  common = os.path.commonpath([path.absolute().parent for path in paths])
  names = [path.absolute().relative_to(common) for path in paths]
  stems = [name.with_suffix('') for name in names]
  uses = collections.Counter(stems)
  for path, name, stem in zip(paths, names, stems, strict=True):
    yield path, name if uses[stem] > 1 else stem
