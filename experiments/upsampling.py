"""Five ways back up: SegNet-Basic with each of them in its decoder, as in table 1 of the paper.

    python -m experiments.upsampling                 # generated scenes
    python -m experiments.upsampling --camvid=DIR    # CamVid at half size, some hours

Max-unpooling knows from the encoder where each maximum stood. Nearest, bed of nails and bilinear
know nothing and spread what they are given; the transposed convolution knows nothing either, but
learns how to spread. The nets are the same otherwise, start with the same kernels and see the same
pictures in the same order.

Writes `upsampling.json`, `upsampling.png` and `README.md` into `--out`; started again after a stop,
it goes on.
"""

import functools
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from configs import segnet_basic
from experiments import study
from seg_jax import pictures, runtime
from seg_jax.models.segnet import UPSAMPLINGS
from seg_jax.tasks import build_task
from seg_jax.training import summary
from seg_jax.training.optimizer import make_optimizer, make_schedule
from seg_jax.training.step import init_state, make_step

_CAMVID = flags.DEFINE_string('camvid', '', 'CamVid: train, trainannot, ...; else generated scenes')
_OUT = flags.DEFINE_string(
  'out', '', 'where the results go; CamVid, with its pictures, into --runs'
)
_RUNS = flags.DEFINE_string('runs', 'runs/studies/upsampling', 'where the runs are kept')
_STEPS = flags.DEFINE_integer('steps', 600, 'of training, for each way')

ROUNDS = 15  # of timing, one step of each net in turns
SCENES = (28, 85)  # of val, that the figure shows
EXPLAINED = """
A step is forward, backward and update of one batch, timed in turns with the others; its memory is
what the compiled step holds besides parameters, optimizer and batch. The transposed convolutions
are 2x2 with stride 2, one at each of the four levels.
"""


def nets(num_steps: int) -> dict:
  """The config of each net."""
  configs = {}
  for upsampling in UPSAMPLINGS:
    configs[upsampling] = config = segnet_basic.get_config('camvid' if _CAMVID.value else 'shapes')
    if _CAMVID.value:
      config.dtype = 'float32'
      config.data.update({'dir': _CAMVID.value, 'image_scale': 0.5, 'crop_size': (176, 240)})
      config.model.width = 24
      config.optimizer.learning_rate = 4e-3
    config.model.upsampling = upsampling
    config.train.num_steps = num_steps
    config.train.eval_every = config.train.checkpoint_every = max(num_steps // 3, 1)
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
    steps[name] = summary.compile_step(make_step(task, optimizer, schedule), state, shapes, key)
    rows[name] = {
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
      'step_mib': steps[name].memory_analysis().temp_size_in_bytes / 2**20,
    }
  batch = {
    'image': rng.integers(0, 256, shapes['image'].shape, np.uint8),
    'label': rng.integers(0, info.num_classes, shapes['label'].shape, np.int32),
    'valid': np.ones(shapes['valid'].shape, bool),
  }
  times = {name: [] for name in configs}
  for _ in range(ROUNDS):
    for name, step in steps.items():
      start = time.perf_counter()
      states[name], logs = step(states[name], batch, key)
      jax.block_until_ready(logs)
      times[name].append(1000 * (time.perf_counter() - start))
  return {name: row | {'step_ms': statistics.median(times[name])} for name, row in rows.items()}


def chart(rows: dict, panels: dict, info) -> Figure:
  """The scores on the left; on the right the same scenes as each net labels them."""
  figure = Figure(figsize=(13, 3.9), layout='constrained', dpi=130)
  left, right = figure.subfigures(1, 2, width_ratios=(1, 2.3))
  axes = left.subplots()
  names = [name.replace('_', ' ') for name in rows]
  for i, (key, title) in enumerate((('miou', 'mIoU'), ('boundary_iou', 'boundary IoU'))):
    at = np.arange(len(rows)) + 0.4 * i - 0.2
    bars = axes.barh(at, [100 * row[key] for row in rows.values()], 0.38, label=title)
    axes.bar_label(bars, fmt='%.1f', padding=2, fontsize=8)
  axes.set_yticks(np.arange(len(rows)), names)
  axes.invert_yaxis()
  axes.set_xlabel('%')
  axes.margins(x=0.12)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize=8, ncols=2, loc='lower left', bbox_to_anchor=(0, 1))
  grid = right.subplots(len(SCENES), 2 + len(rows))
  for line, *shown in zip(grid, *panels.values(), strict=True):
    image, truth, _ = shown[0]
    labels = [truth, *(label for _, _, label in shown)]
    drawn = [image, *(pictures.colourise(label, info.palette) for label in labels)]
    for axes, picture in zip(line, drawn, strict=True):
      axes.imshow(picture, interpolation='nearest')
      axes.set_axis_off()
  for axes, title in zip(grid[0], ('picture', 'truth', *names), strict=True):
    axes.set_title(title, fontsize=9)
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
  machine = result['machine']
  return (
    '# Five ways back up\n\n'
    f'SegNet-Basic of width {result["width"]} on {result["dataset"]}, {result["steps"]} steps '
    f'each; scores of val. {machine["cores"]} cores of {machine["cpu"]}.\n\n'
    f'{study.table(columns, rows)}\n{EXPLAINED}\n![scores and scenes](upsampling.png)\n'
  )


def main(argv):
  del argv
  runtime.start()
  configs = nets(_STEPS.value)
  runs = Path(_RUNS.value) / ('camvid' if _CAMVID.value else 'shapes')
  rows, panels = {}, {}
  for name, config in configs.items():
    scores = study.trained(config, runs / name)['val']
    panels[name], info = study.predicted(config, runs / name, 'val', SCENES)
    rows[name] = {key: scores[key] for key in ('miou', 'boundary_iou')}
  result = {
    'machine': study.machine(),
    'dataset': config.data.name,
    'width': config.model.width,
    'steps': _STEPS.value,
    'nets': {name: rows[name] | cost for name, cost in costs(configs, info).items()},
  }
  results = runs if _CAMVID.value else Path('experiments/results/upsampling')
  figure = chart(rows, panels, info)
  study.write(Path(_OUT.value or results), 'upsampling', result, page(result), figure)


if __name__ == '__main__':
  runtime.plain_warnings()
  app.run(runtime.exits(main))
