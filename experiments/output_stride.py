"""How dense features have to be: DeepLab v3 trained and judged at output strides 32, 16 and 8.

    python -m experiments.output_stride

The net has the same parameters at every stride, so each can be judged at all of them (Chen et al.
2017, section 4.1 and table 1). Besides, "going deeper" (section 3.2, tables 1 to 3): blocks 5 to 7
behind block 4 in cascade, each halving the map again, or à trous. Generated scenes at three times
their size, a small ResNet-18.

Writes `output_stride.json`, `output_stride.png` and `README.md` into `--out`; started again after a
stop, it goes on.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from configs import deeplab_v3
from experiments import study
from seg_jax.models import build_model
from seg_jax.training import evaluation
from seg_jax.training.mesh import make_mesh

STEPS = 400  # of training, for each net
STRIDES = (32, 16, 8)
CASCADES = {'strided, 256': 256, 'à trous, 16': 16}
SCALE = 3  # of the scenes
ROUNDS = 10  # of timing
EXPLAINED = """
Scores are of val, one seed; rows are how a net was trained, columns how it was judged. Time and
memory are those of a forward pass over one enlarged scene; memory is what it holds besides weights
and picture. The cascades have no ASPP and are judged as they were trained.
"""


def config(output_stride: int, head: str, steps: int):
  config = deeplab_v3.get_config()
  config.data.update({'image_scale': float(SCALE), 'crop_size': (SCALE * 64, SCALE * 64)})
  config.model.update({'head': head, 'output_stride': output_stride, 'auxiliary': False})
  config.model.atrous_rates = (2, 4, 6)
  config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  return config


def judged(config, workdir: Path, output_stride: int) -> dict:
  """The scores of the net in `workdir` at another output stride; kept there."""
  out = workdir / f'at_{output_stride}'
  path = out / 'eval' / 'val.json'
  if not path.exists():
    config = config.copy_and_resolve_references()
    config.model.output_stride = output_stride
    step, variables, task, source = study.load(config, workdir, 'val')
    evaluation.Evaluator(task, source, config, 'val', make_mesh())(step, variables, out)
  return json.loads(path.read_text())


def costs(configs: dict) -> dict:
  """Milliseconds and MiB of a forward pass of each net, timed in turns."""
  image = np.zeros((1, SCALE * 96, SCALE * 96, 3), np.float32)
  runs, rows = {}, {}
  for name, config in configs.items():
    model = build_model(config, 7)
    variables = jax.jit(model.init)(jax.random.key(0), image)
    run = jax.jit(lambda v, x, model=model: model.apply(v, x)['logits']).lower(variables, image)
    run = run.compile()
    rows[name] = {'mib': run.memory_analysis().temp_size_in_bytes / 2**20}
    runs[name] = functools.partial(run, variables, image)
  times = study.in_turns(runs, ROUNDS)
  return {name: row | {'ms': times[name]} for name, row in rows.items()}


def chart(result: dict) -> Figure:
  """mIoU by the stride of evaluation, a line for each of training, and what a pass costs."""
  figure = Figure(figsize=(11, 4.2), layout='constrained', dpi=130)
  left, right = figure.subplots(1, 2)
  at = range(len(STRIDES))
  for trained, row in result['aspp'].items():
    scores = [100 * row[str(stride)]['miou'] for stride in STRIDES]
    left.plot(at, scores, marker='o', label=f'trained at {trained}')
  left.set_xticks(at, [str(stride) for stride in STRIDES])
  left.set_xlabel('output stride of the evaluation')
  left.set_ylabel('mIoU, %')
  left.legend(frameon=False)
  costs = result['costs']
  bars = right.barh(list(costs), [row['ms'] for row in costs.values()], color='tab:gray')
  right.bar_label(bars, [f'{row["mib"]:.1f} MiB' for row in costs.values()], padding=3, fontsize=8)
  right.invert_yaxis()
  right.set_xlabel('forward pass, ms')
  right.margins(x=0.15)
  for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  return figure


def page(result: dict) -> str:
  def score(row):
    return f'{100 * row["miou"]:.1f} ({100 * row["boundary_iou"]:.1f})'

  aspp = [
    (f'trained at {stride}', *(score(row[str(other)]) for other in STRIDES))
    for stride, row in result['aspp'].items()
  ]
  cascade = [(name, score(row)) for name, row in result['cascade'].items()]
  costs = [
    (name, f'{row["ms"]:.0f} ms', f'{row["mib"]:.0f}') for name, row in result['costs'].items()
  ]
  return (
    '# Output stride\n\n'
    f'DeepLab v3 on a narrow ResNet-18, {result["steps"]} steps each on generated scenes. mIoU '
    f'(boundary IoU). {result["machine"]["name"]}.\n\n'
    f'{study.table(("ASPP", *(f"at {stride}" for stride in STRIDES)), aspp)}\n\n'
    f'{study.table(("going deeper", "mIoU"), cascade)}\n\n'
    f'{study.table(("forward pass", "time", "memory, MiB"), costs)}\n'
    f'{EXPLAINED}\n![scores and costs](output_stride.png)\n'
  )


def main(name):
  steps, runs = study.STEPS.value or STEPS, study.runs(name)
  nets = {f'ASPP at {stride}': config(stride, 'aspp', steps) for stride in STRIDES}
  nets |= {f'cascade, {how}': config(s, 'cascade', steps) for how, s in CASCADES.items()}
  aspp, cascade = {}, {}
  for net, net_config in nets.items():
    stride = net_config.model.output_stride
    workdir = runs / f'{net_config.model.head}_{stride}'
    own = study.trained(net_config, workdir)['val']
    if net_config.model.head == 'cascade':
      cascade[net.removeprefix('cascade, ')] = own
    else:
      others = {
        str(other): judged(net_config, workdir, other) for other in STRIDES if other != stride
      }
      aspp[str(stride)] = {str(stride): own} | others
  keys = ('miou', 'boundary_iou')
  result = {
    'machine': study.machine(),
    'steps': steps,
    'aspp': {
      trained: {at: {key: row[key] for key in keys} for at, row in rows.items()}
      for trained, rows in aspp.items()
    },
    'cascade': {how: {key: row[key] for key in keys} for how, row in cascade.items()},
    'costs': costs(nets),
  }
  study.write(name, result, page(result), chart(result))


if __name__ == '__main__':
  study.run(main)
