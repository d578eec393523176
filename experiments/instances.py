"""What semantic, instance and panoptic segmentation say of the same picture.

    python -m experiments.instances

A U-Net gives every pixel a class, Mask R-CNN finds objects and leaves the rest, Panoptic FPN does
both (Kirillov et al., Panoptic Segmentation, CVPR 2019, figure 1). Each is its own small config,
trained on generated scenes and judged by the measure of its task.

Writes `instances.json`, `instances.png` and `README.md` into `--out`; started again after a stop,
it goes on.
"""

import importlib

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import study
from seg_jax.data import instances

NETS = {'semantic': 'unet', 'instance': 'mask_rcnn', 'panoptic': 'panoptic_fpn'}
TOLD = {
  'semantic': {'miou': 'mIoU'},
  'instance': {'mask_ap': 'mask AP', 'mask_ap50': 'mask AP50', 'box_ap50': 'box AP50'},
  'panoptic': {
    'pq': 'PQ',
    'sq': 'SQ',
    'rq': 'RQ',
    'pq_things': 'PQ things',
    'pq_stuff': 'PQ stuff',
  },
}
EXPLAINED = """
One seed, small nets from scratch; the scores are of different measures and cannot be compared with
each other. In the figure the colours of labels are those of classes; objects have colours, or
shades, of their own. Two cut-outs of a class that touch are one region to the first net, and two
objects to the others; what is no object is left out by the second. Training is all steps at their
median speed.
"""


def config(net: str, steps: int | None):
  config = importlib.import_module(f'configs.{NETS[net]}').get_config()
  if steps:
    config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  return config


def panels(net_config, workdir) -> list[list[np.ndarray]]:
  """Of some scenes, what the task draws: picture, truth and prediction."""
  _, variables, task, source = study.load(net_config, workdir, 'val')
  said = (*task.maps, *task.tables)

  @jax.jit
  def predict(variables, image):
    predictions = task.predict(variables, {'image': image})
    return {name: predictions[name][0] for name in said}

  drawn = []
  for index in study.SCENES:
    record = source[index]
    if 'instances' in record:
      record = record | instances.padded(record, net_config.data.max_instances)
    prediction = jax.device_get(predict(variables, record['image'][None]))
    drawn.append(task.render(record['image'], prediction, record))
  return drawn


def chart(shown: dict[str, list]) -> Figure:
  """A row for each scene: the picture, then truth and prediction of each net."""
  headings = ['picture', *(f'{net}, {what}' for net in shown for what in ('truth', 'prediction'))]
  rows = [
    [scenes[0][0], *(panel for scene in scenes for panel in scene[1:])]
    for scenes in zip(*shown.values(), strict=True)
  ]
  figure = Figure(figsize=(2.3 * len(headings), 2.4 * len(rows)), layout='constrained', dpi=110)
  axes = figure.subplots(len(rows), len(headings), squeeze=False)
  for line, row in zip(axes, rows, strict=True):
    for place, panel in zip(line, row, strict=True):
      place.imshow(panel)
      place.set_axis_off()
  for place, heading in zip(axes[0], headings, strict=True):
    place.set_title(heading, fontsize=10)
  return figure


def page(result: dict) -> str:
  lines = [
    (
      f'{net} segmentation, `{NETS[net]}`',
      ', '.join(f'{title} {100 * row[key]:.1f} %' for key, title in TOLD[net].items()),
      f'{row["parameters"]:,}',
      f'{row["seconds"] / 60:.1f} min',
    )
    for net, row in result['nets'].items()
  ]
  return (
    '# Classes, objects, and both\n\n'
    f'Generated scenes, judged on the 200 of val. {result["machine"]["name"]}.\n\n'
    f'{study.table(("net", "scores", "parameters", "training"), lines)}\n{EXPLAINED}\n'
    '![scenes](instances.png)\n'
  )


def main(name):
  rows, shown = {}, {}
  for net in NETS:
    net_config, workdir = config(net, study.STEPS.value), study.runs(name) / net
    scores = study.trained(net_config, workdir)
    _, _, _, source = study.load(net_config, workdir, 'val')
    rows[net] = {key: scores['val'][key] for key in TOLD[net]} | {
      'parameters': study.num_parameters(net_config, source.info.num_classes),
      'seconds': scores['seconds'],
    }
    shown[net] = panels(net_config, workdir)
  result = {'machine': study.machine(), 'nets': rows}
  study.write(name, result, page(result), chart(shown))


if __name__ == '__main__':
  study.run(main)
