"""What a model sees in pictures and videos of a user: labels, depth, objects, composites."""

import collections
import functools
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from seg_jax import pictures
from seg_jax.data import bands, files, transforms
from seg_jax.errors import UserError
from seg_jax.inference import composite, video
from seg_jax.ops.decision import decide
from seg_jax.tasks import build_task
from seg_jax.tasks.base import cut
from seg_jax.training import checkpoints
from seg_jax.training.mesh import make_mesh
from seg_jax.training.summary import enough_memory


def predict(config: ml_collections.ConfigDict, workdir: Path, inputs: Sequence[str]) -> None:
  """Writes what the task's `save` makes of each picture below `predict/`.

  Of labels that is `labels/NAME.png`, classes with a palette, and `overlays/NAME.png`; of depth
  `depth/NAME.png`, 16 bits of millimetres, and `depth_colours/NAME.png`; of objects and of segments
  what `InstanceTask.save` and `PanopticTask.save` say. Where `config.inference` asks for a
  composite, `composites/NAME.png` too. Of a video, `composites/NAME.mp4`, or else
  `overlays/NAME.mp4`.

  Args:
    inputs: files, folders (searched through for pictures) or globs, of any size.

  Raises:
    UserError: nothing found, or, once all others are done, files that cannot be used.
  """
  outputs = dict(_outputs(find_pictures(inputs)))
  step, variables, info = checkpoints.load_variables(config, workdir, make_mesh())
  task = build_task(config, info)
  labeller = Labeller(config, task, variables)
  directory, done, faults = workdir / 'predict', [], []
  for path, name in tqdm(outputs.items(), 'predict', unit='file', dynamic_ncols=True):
    label = (
      labeller.label_video if path.suffix.lower() in video.SUFFIXES else labeller.label_picture
    )
    try:
      with enough_memory(str(path), 'lower data.image_scale'):
        label(path, directory, name)
      done.append(str(name))
    except UserError as fault:
      faults.append(str(fault))
  task.finish(directory, done)
  print(f'{len(done)} files, predicted by step {step}: {directory}')
  if faults:
    raise UserError(f'{len(faults)} of {len(outputs)} files cannot be used; {faults[0]}')


class Labeller:
  """A task with the variables of a checkpoint, for pictures of any size.

  Raises:
    UserError: a class or a file that `config.inference` names is not there, or labels are missing.
  """

  def __init__(self, config: ml_collections.ConfigDict, task, variables: dict):
    self._config, self._task, self._info = config, task, task.info
    self._steps = composite.steps(config.inference, task.info)
    if self._steps and 'label' not in task.maps:
      raise UserError(f'config.inference wants labels; expected another task than {config.task!r}')
    look = functools.partial(_look, task, config.inference, [step.classes for step in self._steps])
    self._look = functools.partial(jax.jit(look), variables)

  def label_picture(self, path: Path, directory: Path, name: Path) -> None:
    """Writes what the task sees in one picture file."""
    image = bands.readers(self._config.data)['read_image'](path)
    maps, alphas, _ = self.look(image)
    self._task.save(directory, str(name), image, maps)
    if self._steps:
      composed = self._compose(image, alphas)
      pictures.write_png(directory / 'composites' / f'{name}.png', composed)

  def label_video(self, path: Path, directory: Path, name: Path) -> None:
    """Labels or composes one video file."""
    channels, bits = self._config.data.channels, self._config.data.bits
    if (channels, bits) != (3, 8):
      raise UserError(f'{path}: a video; expected pictures of {channels} channels and {bits} bits')
    if 'label' not in self._task.maps:
      raise UserError(f'{path}: a video; expected pictures, as task is {self._config.task!r}')
    folder = 'composites' if self._steps else 'overlays'
    with video.reading(path) as clip:
      told = {'unit': 'frame', 'leave': False, 'dynamic_ncols': True}
      frames = self.frames(tqdm(clip.frames, path.name, clip.count, **told))
      video.write(directory / folder / f'{name}.mp4', frames, clip.rate, sound_of=path)

  def frames(self, frames: video.Frames) -> video.Frames:
    """Each of `frames` composed, or else with its labels over it; none is kept."""
    before = None
    for seconds, image in frames:
      maps, alphas, before = self.look(image, before, smoothed=True)
      if self._steps:
        yield seconds, self._compose(image, alphas)
      else:
        yield seconds, pictures.overlay(image, maps['label'], self._info.palette)

  def look(
    self, image: np.ndarray, before: jax.Array | None = None, smoothed: bool = False
  ) -> tuple[dict[str, np.ndarray], list[np.ndarray], jax.Array | None]:
    """What the task sees in a picture [H, W, C].

    Args:
      smoothed: whether it is a frame of a video, and `before` what the last one returned.

    Returns:
      Each of the task's maps [H, W] and its tables, the alpha float32 [H, W] of each step of
      `composite.steps`, and the probabilities [1, h, w, C], on the device, if they are to be
      smoothed.
    """
    height, width = image.shape[:2]
    multiple = self._config.eval.size_multiple  # so that few sizes are compiled
    margins = (0, -height % multiple, 0, -width % multiple)
    padded = transforms.pad({'image': image}, margins, self._config.data.mean)['image'][None]
    if smoothed and self._config.inference.smoothing:
      shape = (*padded.shape[:3], self._info.num_classes)
      before = jnp.zeros(shape) if before is None or before.shape != shape else before
    *seen, probabilities = self._look(padded, np.int32([[height, width]]), before)
    maps, alphas = jax.device_get(seen)
    maps = {name: cut(name, array, (height, width)) for name, array in maps.items()}
    alphas = [alpha[:height, :width] for alpha in alphas]
    if (feather := self._config.inference.feather) >= 0:
      masks = [np.isin(maps['label'], step.classes) for step in self._steps]
      alphas = [composite.soften(mask, feather) for mask in masks]
    return maps, alphas, probabilities

  def _compose(self, image, alphas):
    image = pictures.viewable(image)
    for step, alpha in zip(self._steps, alphas, strict=True):
      image = step.apply(image, alpha)
    return image


def _look(task, options, groups, variables, image, size, before):
  """The device's part of `Labeller.look`.

  `before` None: nothing is smoothed; all 0: there is no frame before.
  """
  predictions = task.predict(variables, {'image': image, 'size': size})
  maps = {name: predictions[name][0] for name in (*task.maps, *task.tables)}
  if 'label' not in maps:
    return maps, [], None
  probabilities = jax.nn.softmax(predictions['logits'])
  if before is not None:
    weight = options.smoothing * before.sum(-1, keepdims=True)
    probabilities = options.smoothing * before + (1 - weight) * probabilities
    maps['label'] = decide(jnp.log(probabilities), options.threshold)[0]
  shares = [probabilities[0][..., np.array(classes)].sum(-1) for classes in groups]
  return maps, shares, None if before is None else probabilities


def find_pictures(inputs: Sequence[str]) -> list[Path]:
  """The files that `inputs` name, each once, in their order; of a folder, the pictures below it.

  Raises:
    UserError: an input that names none.
  """
  if not inputs:
    raise UserError(
      '--mode=predict needs pictures or videos: files, folders or globs, after the flags'
    )
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
