"""How finely an FCN has to score: a heatmap, 32s, 16s and 8s on CamVid.

    python -m experiments.fcn_strides --camvid=DIR

In stages, as in the paper (Long et al. 2015, section 4.2), and with as many steps for each net: an
FCN-32s is trained first, then 32s, 16s and 8s go on from it, for the same number of steps and at
the same learning rate. The heatmap is 32s with each score filling its cell, without interpolation.
A small VGG16 (width 16), from scratch, on pictures of half the size; labels are judged at their own
360 x 480.

Writes `fcn_strides.json`, `fcn_strides.png` and `README.md` into `--out`, and the
nets' predictions side by side into `--runs` (CamVid's pictures are for academic use). Started again
after a stop, it goes on.
"""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from configs import fcn32s
from experiments import study
from seg_jax.errors import UserError
from seg_jax.training import evaluation
from seg_jax.training.mesh import make_mesh

STEPS = 800  # of each net, both stages together
FIRST_STAGE = 0.6  # of the steps
STRIDES = {'heatmap': 32, '32s': 32, '16s': 16, '8s': 8}
EXPLAINED = """
Scores of test, one seed. Strides are in pixels of the halved pictures. The heatmap is the same net
as 32s, each score filling its cell instead of being interpolated. Training is both stages of a net,
without compilation and evaluation. Boundary IoU looks at the pixels near outlines alone. In the
figure the classes with the fewest pixels, which are the thinnest, stand at the bottom.
"""


def config(head: str, steps: int, start: Path | None = None):
  """A small FCN on half-size pictures, from scratch or from the finished run `start`."""
  config = fcn32s.get_config('camvid')
  config.dtype = 'float32'
  config.data.update({'dir': study.CAMVID.value, 'image_scale': 0.5, 'crop_size': (128, 192)})
  config.model.update({'head': head, 'width': 16, 'fc_features': 256, 'dropout': 0.0})
  config.optimizer.update({'learning_rate': 1e-3 if start else 2e-3, 'warmup_steps': 30})
  config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  config.model.pretrained = str(start or '')
  return config


def judged(config, workdir: Path, out: Path) -> dict:
  """The scores of the net in `workdir` on test, with `config`'s head; kept in `out`."""
  path = out / 'eval' / 'test.json'
  if not path.exists():
    step, variables, task, source = study.load(config, workdir, 'test')
    evaluation.Evaluator(task, source, config, 'test', make_mesh())(step, variables, out)
  return json.loads(path.read_text())


def chart(rows: dict) -> Figure:
  """Both measures of each net on the left; each class's IoU, the rarest below, on the right."""
  figure = Figure(figsize=(11, 4.4), layout='constrained', dpi=130)
  left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
  study.score_bars(left, rows)
  per_class = {head: row['per_class'] for head, row in rows.items()}
  pixels = {name: scores['pixels'] for name, scores in per_class['8s'].items()}
  names = sorted(pixels, key=pixels.get)
  for i, (head, scores) in enumerate(per_class.items()):
    ious = [100 * (scores[name]['iou'] or 0) for name in names]
    shade = matplotlib.colormaps['YlGnBu'](0.3 + 0.7 * i / 3)
    right.scatter(ious, names, s=45, color=shade, label=head, zorder=2)
  right.set_xlabel('IoU of a class, %')
  right.grid(axis='y', alpha=0.3)
  right.legend(frameon=False, ncols=4, loc='lower left', bbox_to_anchor=(0, 1))
  right.spines[['top', 'right']].set_visible(False)
  return figure


def page(result: dict) -> str:
  columns = ('net', 'stride', 'mIoU', 'boundary IoU', 'parameters', 'training')
  rows = [
    (
      head,
      STRIDES[head],
      *(f'{100 * row[key]:.1f}' for key in ('miou', 'boundary_iou')),
      f'{row["parameters"]:,}',
      f'{row["seconds"] / 60:.1f} min',
    )
    for head, row in result['nets'].items()
  ]
  return (
    '# FCN strides\n\n'
    f'FCN on a VGG16 of width 16, CamVid at half size, from scratch: {result["first_stage"]} steps '
    f'as 32s, then {result["steps"] - result["first_stage"]} more as 32s, 16s and 8s. Judged on '
    f'{result["num_images"]} pictures, on {result["machine"]["name"]}.\n\n'
    f'{study.table(columns, rows)}\n{EXPLAINED}\n![scores](fcn_strides.png)\n'
  )


def main(name):
  if not study.CAMVID.value:
    raise UserError('--camvid is missing; expected the folder that holds train, trainannot, ...')
  runs, steps = study.runs(name), study.STEPS.value or STEPS
  first = round(FIRST_STAGE * steps)
  before = study.trained(config('32s', first), runs / 'first')['seconds']
  nets, rows = {}, {}
  for head in ('32s', '16s', '8s'):
    nets[head] = config(head, steps - first, runs / 'first'), runs / head
    rows[head] = study.trained(*nets[head])
    rows[head] = rows[head]['test'] | {'seconds': before + rows[head]['seconds']}
  heatmap = config('heatmap', steps - first, runs / 'first')
  nets = {'heatmap': (heatmap, runs / '32s')} | nets
  scores = judged(*nets['heatmap'], runs / '32s' / 'heatmap')
  rows = {'heatmap': scores | {'seconds': rows['32s']['seconds']}} | rows
  keys = ('miou', 'boundary_iou', 'per_class', 'seconds')
  result = {
    'machine': study.machine(),
    'steps': steps,
    'first_stage': first,
    'num_images': scores['num_images'],
    'nets': {
      head: {key: row[key] for key in keys}
      | {'parameters': study.num_parameters(nets[head][0], len(row['per_class']))}
      for head, row in rows.items()
    },
  }
  study.side_by_side(nets, 'test', runs / 'side_by_side.png')
  study.write(name, result, page(result), chart(result['nets']))


if __name__ == '__main__':
  study.run(main)
