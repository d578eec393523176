"""What or where: the tension between semantics and location, in four nets of equal cost.

    python -m experiments.what_or_where

A net that never pools sees each pixel sharply, but only a few pixels around it. One that pools sees
the whole scene, and on the way down forgets where things are. Skips hand over what was forgotten.
Trained on the generated scenes for the same number of steps, each at the width that makes its
forward pass as expensive as the U-Net's; the fourth pools as often but never comes back up.

Writes `what_or_where.json`, `what_or_where.png` and `README.md` into `--out`. About 15 minutes on
two cores; started again after a stop, it goes on.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from configs import conv_only, unet
from experiments import study
from seg_jax import pictures, runtime
from seg_jax.metrics import boundary
from seg_jax.models import build_model

_OUT = flags.DEFINE_string('out', 'experiments/results/what_or_where', 'where the results go')
_RUNS = flags.DEFINE_string('runs', 'runs/studies/what_or_where', 'where the runs are kept')
_STEPS = flags.DEFINE_integer('steps', 900, 'of training, for each net')

WIDTH = 12  # of the U-Net, whose cost the others have to match
SCENES = (28, 85)  # of val, that the figure shows
EXPLAINED = """
*What*: of the pixels of objects that are taken for an object, the share with the right class.
*Where*: boundary IoU of objects, whatever their class, against the ground. Cost is of one forward
pass of a 96 x 96 scene, as XLA counts it before optimisation; the window is the part of the picture
on which one output depends, found by its gradient, in a picture of 256 x 256.
"""


def nets(num_steps: int) -> dict:
  """The config of each net; its width is still to be matched."""
  configs = {
    'convolutions only': conv_only.get_config(),
    'down and up': unet.get_config(),
    'down and up, with skips': unet.get_config(),
  }
  configs['down and up'].model.skips = False
  for config in configs.values():
    config.model.width = WIDTH
    config.train.num_steps = num_steps
    config.train.eval_every = config.train.checkpoint_every = max(num_steps // 3, 1)
  return configs


def gigaflops(config) -> float:
  """Of one forward pass."""
  model = build_model(config, 7)
  image = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return jax.jit(model.apply).lower(variables, image).cost_analysis()['flops'] / 1e9


def match(config, target: float) -> float:
  """Sets the width whose cost is nearest to `target`; returns that cost."""
  costs = {}
  for width in range(4, 65):
    config.model.width = width
    costs[width] = gigaflops(config)
    if costs[width] > target:
      break
  config.model.width = min(costs, key=lambda width: abs(math.log(costs[width] / target)))
  return costs[config.model.width]


def window(config, size: int = 256) -> int:
  """Rows and columns of the part of a picture on which the output in its middle depends."""
  model = build_model(config, 7)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(1, size, size, 3)), jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), image)

  @jax.jit
  def sensitivity(image):
    def middle(image):
      return jnp.sum(model.apply(variables, image)['logits'][0, size // 2, size // 2])

    return jnp.abs(jax.grad(middle)(image)).sum((0, 3)) > 0

  reached = np.argwhere(sensitivity(image))
  return int((reached.max(0) - reached.min(0) + 1).max())


def what_and_where(panels) -> dict:
  """Of predictions (picture, truth, label): is the class of an object right, is its outline?"""
  truth, label = (np.stack([panel[i] for panel in panels]).astype(np.int32) for i in (1, 2))
  labelled = truth != 255
  found = labelled & (truth > 0) & (label > 0)
  counts = jax.jit(functools.partial(boundary.count, num_classes=2))(
    label > 0, np.where(labelled, truth > 0, 255)
  )
  near, true, predicted = np.asarray(counts, np.int64)[:, 1]
  return {'what': float((truth == label)[found].mean()), 'where': near / (true + predicted - near)}


def chart(rows: dict, panels: dict, info) -> Figure:
  """What against where on the left, the same scenes as each net sees them on the right."""
  figure = Figure(figsize=(12, 4.6), layout='constrained', dpi=130)
  left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
  axes = left.subplots()
  for name, row in rows.items():
    axes.scatter(100 * row['where'], 100 * row['what'], s=70)
    axes.annotate(
      name, (100 * row['where'], 100 * row['what']), (0, 9), textcoords='offset points', ha='center'
    )
  axes.set_xlabel('where: boundary IoU of objects, %')
  axes.set_ylabel('what: objects of the right class, %')
  axes.margins(0.35, 0.2)
  axes.spines[['top', 'right']].set_visible(False)
  columns = ['picture', 'truth', *rows]
  grid = right.subplots(len(SCENES), len(columns), squeeze=False)
  for i, scene in enumerate(SCENES):
    image, truth, _ = next(iter(panels.values()))[scene]
    labels = [truth, *(panels[name][scene][2] for name in rows)]
    shown = [image, *(pictures.colourise(label, info.palette) for label in labels)]
    for axes, picture, column in zip(grid[i], shown, columns, strict=True):
      axes.imshow(picture, interpolation='nearest')
      axes.set_axis_off()
      if i == 0:
        axes.set_title(column, fontsize=9)
  return figure


def page(result: dict) -> str:
  columns = ('net', 'width', 'GFLOP', 'window', 'parameters', 'what', 'where', 'mIoU')
  columns += ('boundary IoU', 'training')
  rows = [
    (
      name,
      row['width'],
      row['gigaflops'],
      f'{row["window"]} px',
      f'{row["parameters"]:,}',
      *(f'{100 * row[key]:.1f}' for key in ('what', 'where', 'miou', 'boundary_iou')),
      f'{row["seconds"] / 60:.1f} min',
    )
    for name, row in result['nets'].items()
  ]
  return (
    '# What or where\n\n'
    f'{result["machine"]["cores"]} cores of {result["machine"]["cpu"]}; {result["steps"]} steps of '
    'each net on generated scenes, scored on the 200 of val.\n\n'
    f'{study.table(columns, rows)}\n{EXPLAINED}\n![what against where](what_or_where.png)\n'
  )


def main(argv):
  del argv
  runtime.start()
  configs = nets(_STEPS.value)
  target = gigaflops(configs['down and up, with skips'])
  rows, panels = {}, {}
  for name, config in configs.items():
    cost = match(config, target)
    workdir = Path(_RUNS.value) / name.replace(' ', '_').replace(',', '')
    scores = study.trained(config, workdir)
    panels[name], info = study.predicted(config, workdir, 'val', range(200))
    rows[name] = {
      'width': config.model.width,
      'gigaflops': cost,
      'window': window(config),
      'parameters': study.num_parameters(config, info.num_classes),
      'seconds': scores['seconds'],
      **{key: scores['val'][key] for key in ('miou', 'boundary_iou')},
      **what_and_where(panels[name]),
    }
  result = {'machine': study.machine(), 'steps': _STEPS.value, 'nets': rows}
  figure = chart(rows, panels, info)
  study.write(Path(_OUT.value), 'what_or_where', result, page(result), figure)


if __name__ == '__main__':
  runtime.plain_warnings()
  app.run(runtime.exits(main))
