"""What each part of a RefineNet adds (Lin et al. 2017, table 3), on the generated scenes.

    python -m experiments.refinement

The whole net first, then the same without one part: residual units, chained residual pooling, or
some of the blocks, down to a single one that fuses all four resolutions at once. A ResNet-18 of
half its width, from scratch, on scenes of twice their size.

Writes `refinement.json`, `refinement.png` and `README.md` into `--out`; started again after a stop,
it goes on.
"""

from matplotlib.figure import Figure

from configs import refinenet
from experiments import study

STEPS = 400  # of training, for each net
NETS = {
  'four blocks': {},
  'without residual units': {'residual_units': False},
  'without chained pooling': {'chained_pooling': 0},
  'without both': {'residual_units': False, 'chained_pooling': 0},
  'two blocks': {'cascade': 2},
  'one block': {'cascade': 1},
}
EXPLAINED = """
One seed. All nets have the same backbone, and fuse resolutions by sum; without residual units and
pooling that is nearly all that a block does.
"""


def config(fields: dict, steps: int):
  config = refinenet.get_config()
  config.data.update({'image_scale': 2.0, 'crop_size': (128, 128)})
  config.model.update({'backbone_width': 0.5} | fields)
  config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  return config


def chart(rows: dict, panels: dict, info) -> Figure:
  """The scores on the left; on the right the same scenes as each net labels them."""
  figure = Figure(figsize=(14, 4), layout='constrained', dpi=130)
  left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
  study.score_bars(left.subplots(), rows)
  study.grid(right, {name.replace('without', 'w/o'): shown for name, shown in panels.items()}, info)
  return figure


def page(result: dict) -> str:
  columns = ('net', 'mIoU', 'boundary IoU', 'parameters', 'training')
  lines = [
    (
      name,
      *(f'{100 * row[key]:.1f}' for key in ('miou', 'boundary_iou')),
      f'{row["parameters"]:,}',
      f'{row["seconds"] / 60:.1f} min',
    )
    for name, row in result['nets'].items()
  ]
  scores = [100 * row['miou'] for row in result['nets'].values()]
  return (
    '# Refinement\n\n'
    f'RefineNet on a narrow ResNet-18, {result["steps"]} steps each on generated scenes, judged on '
    f'the 200 of val. {result["machine"]["name"]}.\n\n'
    f'{study.table(columns, lines)}\n\nAll nets lie within {max(scores) - min(scores):.1f} points: '
    'on such small and simple scenes no part can be told to help.\n'
    f'{EXPLAINED}\n![scores and scenes](refinement.png)\n'
  )


def main(name):
  steps = study.STEPS.value or STEPS
  rows, panels = {}, {}
  for net, fields in NETS.items():
    net_config, workdir = config(fields, steps), study.runs(name) / net.replace(' ', '_')
    scores = study.trained(net_config, workdir)
    panels[net], info = study.predicted(net_config, workdir, 'val', study.SCENES)
    rows[net] = {key: scores['val'][key] for key in ('miou', 'boundary_iou')}
    rows[net] |= {'seconds': scores['seconds']}
    rows[net] |= {'parameters': study.num_parameters(net_config, info.num_classes)}
  result = {'machine': study.machine(), 'steps': steps, 'nets': rows}
  study.write(name, result, page(result), chart(rows, panels, info))


if __name__ == '__main__':
  study.run(main)
