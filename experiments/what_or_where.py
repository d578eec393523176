"""What or where: the tension between semantics and location, in three nets of equal cost.

    python -m experiments.what_or_where

A net that never pools sees each pixel sharply, but only a few pixels around it. One that pools sees
the whole scene, and on the way down forgets where things are. Skips hand over what was forgotten.
Trained on the generated scenes for the same number of steps, each at the width that makes its
forward pass as expensive as the U-Net's.

Writes `what_or_where.json`, `what_or_where.png` and `README.md` into `--out`; started again after a
stop, it goes on.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from configs import conv_only, unet
from experiments import study
from seg_jax.metrics import boundary
from seg_jax.models import build_model

STEPS = 700  # of training, for each net
WIDTH = 14  # of the U-Net, whose cost the others have to match
EXPLAINED = """
*What*: of the pixels of objects that are taken for an object, the share with the right class.
*Where*: boundary IoU of objects, whatever their class, against the ground. Multiply-adds (MAC) are
those of one 96 x 96 scene; the window is the part of a picture of 256 x 256 on which an output in
its middle depends, found by its gradient.
"""


def nets(num_steps: int) -> dict:
  """The config of each net; its width is still to be matched."""
  configs = {
    'convolutions only': conv_only.get_config(),
    'down and up': unet.get_config(),
    'with skips': unet.get_config(),
  }
  configs['down and up'].model.skips = False
  for config in configs.values():
    config.model.width = WIDTH
    config.train.update({'num_steps': num_steps, 'eval_every': num_steps, 'checkpoint_every': 100})
  return configs


def multiply_adds(config) -> int:
  """Of the forward pass of one scene."""
  model = build_model(config, 7)
  image = jnp.zeros((1, 96, 96, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return study.multiply_adds(jax.make_jaxpr(model.apply)(variables, image).jaxpr)


def match(config, target: int) -> int:
  """Sets the width whose cost is nearest to `target`; returns that cost."""
  # Cost grows about as the square of the width.
  about = round(config.model.width * math.sqrt(target / multiply_adds(config)))
  costs = {}
  for config.model.width in range(max(about - 1, 1), about + 2):
    costs[config.model.width] = multiply_adds(config)
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
  figure = Figure(figsize=(12, 4.4), layout='constrained', dpi=130)
  left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5))
  axes = left.subplots()
  for name, row in rows.items():
    axes.scatter(100 * row['where'], 100 * row['what'], s=90, label=name)
  axes.set_xlabel('where: boundary IoU of objects, %')
  axes.set_ylabel('what: objects of the right class, %')
  axes.margins(0.2)
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, ncols=3, fontsize=8, loc='lower left', bbox_to_anchor=(0, 1))
  chosen = {name: [shown[scene] for scene in study.SCENES] for name, shown in panels.items()}
  study.grid(right, chosen, info)
  return figure


def page(result: dict) -> str:
  columns = ('net', 'width', 'GMAC', 'window', 'parameters', 'what', 'where', 'mIoU')
  columns += ('boundary IoU', 'training')
  rows = [
    (
      name,
      row['width'],
      row['multiply_adds'] / 1e9,
      f'{row["window"]} px',
      f'{row["parameters"]:,}',
      *(f'{100 * row[key]:.1f}' for key in ('what', 'where', 'miou', 'boundary_iou')),
      f'{row["seconds"] / 60:.1f} min',
    )
    for name, row in result['nets'].items()
  ]
  return (
    '# What or where\n\n'
    f'{result["steps"]} steps of each net on generated scenes, one seed, scored on the 200 of val. '
    f'{result["machine"]["name"]}.\n\n'
    f'{study.table(columns, rows)}\n{EXPLAINED}\n![what against where](what_or_where.png)\n'
  )


def main(name):
  steps = study.STEPS.value or STEPS
  configs = nets(steps)
  target = multiply_adds(configs['with skips'])
  rows, panels = {}, {}
  for net, config in configs.items():
    cost = match(config, target)
    workdir = study.runs(name) / net.replace(' ', '_')
    scores = study.trained(config, workdir)
    panels[net], info = study.predicted(config, workdir, 'val', range(200))
    rows[net] = {
      'width': config.model.width,
      'multiply_adds': cost,
      'window': window(config),
      'parameters': study.num_parameters(config, info.num_classes),
      'seconds': scores['seconds'],
      **{key: scores['val'][key] for key in ('miou', 'boundary_iou')},
      **what_and_where(panels[net]),
    }
  result = {'machine': study.machine(), 'steps': steps, 'nets': rows}
  study.write(name, result, page(result), chart(rows, panels, info))


if __name__ == '__main__':
  study.run(main)
