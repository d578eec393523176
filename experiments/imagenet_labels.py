"""Do the ImageNet weights know what they see? MobileNetV2's five best labels for some photographs.

    python -m experiments.imagenet_labels --weights=FILE --pictures=DIR --pictures=DIR

`--weights` is a file with torchvision's names whose strides pad as TensorFlow's and which takes
colours from -1 to 1; `--padding=symmetric` shows what becomes of it with PyTorch's padding. Of
each folder as many pictures are taken, spread over it, six of two folders. The labels' names come
from timm (`pip install -e '.[parity]'`).

Writes `imagenet_labels.json`, `imagenet_labels.png`, the probabilities, and `README.md` into
`--out`.
"""

import importlib.util
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import study
from seg_jax.data import files as pictures_files
from seg_jax.errors import UserError
from seg_jax.models.classifier import Classifier
from seg_jax.weights import load, names

WEIGHTS = flags.DEFINE_string('weights', None, "MobileNetV2 with torchvision's names, .safetensors")
PICTURES = flags.DEFINE_multi_string('pictures', [], 'a folder of JPEGs')
PADDING = flags.DEFINE_enum('padding', 'same', ['same', 'symmetric'], 'of the strides')

SHOWN = 12
BEST = 5


def loaded(path: Path, model: Classifier) -> dict:
  """The variables of `model` from a file with torchvision's names, all of them."""
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)
  here = load.flat(shapes)
  known = names.tables({'name': 'classifier', 'backbone': model.backbone})
  found = load.of_file(path, known, here)
  odd = [name for name, leaf in here.items() if np.shape(found.arrays.get(name)) != leaf.shape]
  if odd := odd or found.unused:
    raise UserError(f'{path} is not a {model.backbone}: {load.listed(odd)}')
  print(f'{path}: all {len(here)} arrays loaded, none left over')
  arrays = [jnp.asarray(found.arrays[name]) for name in here]
  return jax.tree.unflatten(jax.tree.structure(shapes), arrays)


def seen(path: Path) -> np.ndarray:
  """The middle of a picture whose shorter side is made 256 pixels, [224, 224, 3], -1 to 1."""
  image = pictures_files.read_image(path)
  factor = 256 / min(image.shape[:2])
  image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
  top, left = ((n - 224) // 2 for n in image.shape[:2])
  return image[top : top + 224, left : left + 224].astype(np.float32) / 127.5 - 1


def label_names() -> list[str]:
  """The 1000 labels, in order, as timm's data files have them."""
  timm = importlib.util.find_spec('timm')
  if timm is None:
    raise UserError("timm names the labels: pip install -e '.[parity]'")
  folder = Path(timm.origin).parent / 'data' / '_info'
  lines = (folder / 'imagenet_synset_to_lemma.txt').read_text().splitlines()
  lemmas = dict(line.split('\t', 1) for line in lines)
  synsets = (folder / 'imagenet_synsets.txt').read_text().split()
  return [lemmas[synset].split(',')[0] for synset in synsets]


def chosen(folders: list[str]) -> list[Path]:
  """`SHOWN` pictures, as many of each folder, spread over it by name."""
  paths = []
  for folder in folders:
    found = sorted(Path(folder).rglob('*.jpg'))
    count = SHOWN // len(folders)
    if len(found) < count:
      raise UserError(f'--pictures={folder} holds {len(found)} JPEGs; expected {count} or more')
    paths += [found[i] for i in np.linspace(0, len(found) - 1, count, dtype=int)]
  return paths


def chart(rows: list[dict]) -> Figure:
  """The five probabilities of each picture."""
  figure = Figure(figsize=(12, 8), layout='constrained', dpi=110)
  for axes, row in zip(figure.subplots(4, 3).flat, rows, strict=False):
    labels = [label for label, _ in row['best']]
    axes.barh(range(BEST), [100 * p for _, p in row['best']], color='#457b9d')
    axes.set_yticks(range(BEST), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title(row['picture'], fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
  return figure


def page(result: dict) -> str:
  lines = [
    (row['picture'], *(f'{label} {100 * p:.0f} %' for label, p in row['best']))
    for row in result['pictures']
  ]
  return (
    "# What ImageNet's weights see\n\n"
    f'MobileNetV2, padding {result["padding"]}: the five best of 1000 labels.\n\n'
    f'{study.table(("picture", *(str(i + 1) for i in range(BEST))), lines)}\n\n'
    '![probabilities](imagenet_labels.png)\n'
  )


def main(name):
  if not (WEIGHTS.value and PICTURES.value):
    raise UserError('--weights and --pictures are expected')
  model = Classifier(backbone='mobilenet_v2', padding=PADDING.value)
  variables = loaded(Path(WEIGHTS.value), model)
  paths = chosen(PICTURES.value)
  logits = jax.jit(model.apply)(variables, np.stack([seen(path) for path in paths]))['logits']
  probabilities = np.asarray(jax.nn.softmax(logits))
  known, rows = label_names(), []
  for path, row in zip(paths, probabilities, strict=True):
    best = np.argsort(-row)[:BEST]
    labels = [known[i] for i in best]
    rows.append({'picture': path.stem, 'best': list(zip(labels, row[best].tolist(), strict=True))})
  result = {'padding': PADDING.value, 'pictures': rows}
  study.write(name, result, page(result), chart(rows))


if __name__ == '__main__':
  study.run(main)
