"""What a model says of a user's pictures: labels, depth, or whatever its task is."""

import collections
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
from tqdm import tqdm

from seg_jax.data import bands, files, transforms
from seg_jax.errors import UserError
from seg_jax.tasks import build_task
from seg_jax.training import checkpoints
from seg_jax.training.mesh import make_mesh
from seg_jax.training.summary import enough_memory


def predict(config: ml_collections.ConfigDict, workdir: Path, inputs: Sequence[str]) -> None:
  """Writes what the task's `save` makes of each picture below `predict/`.

  Of labels that is `labels/NAME.png`, classes with a palette, and `overlays/NAME.png`; of depth
  `depth/NAME.png`, 16 bits of millimetres, and `depth_colours/NAME.png`.

  Args:
    inputs: files, folders (searched through) or globs of pictures of any size.

  Raises:
    UserError: no picture found, or, once all others are done, pictures that cannot be read.
  """
  outputs = dict(_outputs(find_pictures(inputs)))
  step, variables, info = checkpoints.load_variables(config, workdir, make_mesh())
  task = build_task(config, info)

  @jax.jit
  def maps_of(variables, image):
    predictions = task.predict(variables, {'image': image})
    return {name: predictions[name][0] for name in task.maps}

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
      maps = jax.device_get(maps_of(variables, padded[None]))
    maps = {map_name: array[:height, :width] for map_name, array in maps.items()}
    task.save(directory, str(name), image, maps)
  print(f'{len(outputs) - len(faults)} pictures, predicted by step {step}: {directory}')
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
