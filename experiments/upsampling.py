"""Five ways back up: SegNet-Basic with each of them in its decoder, as in table 1 of the paper.

    python -m experiments.upsampling                 # generated scenes
    python -m experiments.upsampling --camvid=DIR    # CamVid at half size, some hours

Max-unpooling knows from the encoder where each maximum stood. Nearest, bed of nails and bilinear
know nothing and spread what they are given; the transposed convolution knows nothing either, but
learns how to spread. The nets are the same otherwise, start with the same kernels and see the same
pictures in the same order.

Writes `upsampling.json`, `upsampling.png` and `README.md` into `--out` (CamVid's, as it shows its
pictures, into `--runs` unless told otherwise); started again after a stop, it goes on.
"""

import functools

import jax
import numpy as np
from matplotlib.figure import Figure

from configs import segnet_basic
from experiments import study
from seg_jax.models.segnet import UPSAMPLINGS
from seg_jax.tasks import build_task
from seg_jax.training import summary
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state, make_step

STEPS = 600  # of training, for each way
ROUNDS = 10  # of timing, one step of each net in turns
EXPLAINED = """
A step is forward, backward and update of one batch, timed in turns with the others; its memory is
what the compiled step holds besides parameters, optimizer and batch. The transposed convolutions
are 2x2 with stride 2, one at each of the four levels.
"""


def nets(num_steps: int) -> dict:
  """The config of each net."""
  configs = {}
  for upsampling in UPSAMPLINGS:
    configs[upsampling] = config = segnet_basic.get_config(
      'shapes' if study.CAMVID.value is None else 'camvid'
    )
    if study.CAMVID.value is not None:
      config.dtype = 'float32'
      config.data.update({'dir': study.CAMVID.value, 'image_scale': 0.5, 'crop_size': (176, 240)})
      config.model.width = 24
      config.optimizer.learning_rate = 4e-3
    config.model.upsampling = upsampling
    config.train.num_steps = num_steps
    config.train.update({'eval_every': num_steps, 'checkpoint_every': 100})
    config.eval.splits = 'val' if study.CAMVID.value is None else 'val,test'
  return configs


def costs(configs: dict, info) -> dict:
  """Of each net its parameters, and a training step's milliseconds and MiB."""
  rng, key = np.random.default_rng(0), jax.random.key(0)
  steps, states, rows = {}, {}, {}
  for name, config in configs.items():
    task = build_task(config, info)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    shapes = task.example(config.data.batch_size, config.data.crop_size)
    init = functools.partial(init_state, task, optimizer, 0.0, shapes=shapes)
    states[name] = state = jax.jit(init)(key)
    step = jax.jit(make_step(task, optimizer, schedule), donate_argnums=0)
    steps[name] = summary.compile_step(step, state, shapes, key)
    rows[name] = {
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
      'step_mib': steps[name].memory_analysis().temp_size_in_bytes / 2**20,
    }
  batch = {
    'image': rng.integers(0, 256, shapes['image'].shape, np.uint8),
    'label': rng.integers(0, info.num_classes, shapes['label'].shape, np.int32),
    'valid': np.ones(shapes['valid'].shape, bool),
  }

  def step(name):
    states[name], logs = steps[name](states[name], batch, key)
    return logs

  times = study.in_turns({name: functools.partial(step, name) for name in configs}, ROUNDS)
  return {name: row | {'step_ms': times[name]} for name, row in rows.items()}


def chart(rows: dict, panels: dict, info) -> Figure:
  """The scores on the left; on the right the same scenes as each net labels them."""
  figure = Figure(figsize=(13, 4), layout='constrained', dpi=130)
  left, right = figure.subfigures(1, 2, width_ratios=(1, 2.3))
  study.score_bars(left.subplots(), {name.replace('_', ' '): row for name, row in rows.items()})
  study.grid(right, {name.replace('_', ' '): shown for name, shown in panels.items()}, info)
  return figure


def page(result: dict) -> str:
  columns = ('upsampling', 'mIoU', 'boundary IoU', 'parameters', 'step', 'memory of a step')
  rows = [
    (
      name,
      f'{100 * row["miou"]:.1f}',
      f'{100 * row["boundary_iou"]:.1f}',
      f'{row["parameters"]:,}',
      f'{row["step_ms"]:.0f} ms',
      f'{row["step_mib"]:.0f} MiB',
    )
    for name, row in result['nets'].items()
  ]
  return (
    '# Five ways back up\n\n'
    f'SegNet-Basic of width {result["width"]} on {result["dataset"]}, {result["steps"]} steps '
    f'each, one seed; scores of {result["split"]}. {result["machine"]["name"]}.\n\n'
    f'{study.table(columns, rows)}\n{EXPLAINED}\n![scores and scenes](upsampling.png)\n'
  )


def main(name):
  steps = study.STEPS.value or STEPS
  configs = nets(steps)
  dataset, split = ('shapes', 'val') if study.CAMVID.value is None else ('camvid', 'test')
  runs = study.runs(name) / dataset
  rows, panels = {}, {}
  for way, config in configs.items():
    scores = study.trained(config, runs / way)[split]
    panels[way], info = study.predicted(config, runs / way, split, study.SCENES)
    rows[way] = {key: scores[key] for key in ('miou', 'boundary_iou')}
  result = {
    'machine': study.machine(),
    'dataset': dataset,
    'split': split,
    'width': config.model.width,
    'steps': steps,
    'nets': {way: rows[way] | cost for way, cost in costs(configs, info).items()},
  }
  # CamVid's pictures, which the figure then shows, are for academic use.
  results = None if dataset == 'shapes' else runs
  study.write(name, result, page(result), chart(rows, panels, info), results)


if __name__ == '__main__':
  study.run(main)
