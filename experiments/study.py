"""What the studies share: flags, runs that are done once, and the page that shows what came out."""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from jax.interpreters import partial_eval
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from seg_jax import atomic, pictures, runtime, settings
from seg_jax.data.datasets import open_dataset
from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.data.datasets.sources import Source
from seg_jax.errors import UserError
from seg_jax.models import build_model
from seg_jax.tasks import build_task
from seg_jax.tasks.base import Task
from seg_jax.training import checkpoints, loop
from seg_jax.training.logs import read_metrics
from seg_jax.training.mesh import make_mesh

OUT = flags.DEFINE_string('out', None, 'where the results go; else experiments/results/NAME')
RUNS = flags.DEFINE_string('runs', None, 'where the runs are kept; else runs/studies/NAME')
STEPS = flags.DEFINE_integer('steps', None, 'of training, for each net', lower_bound=100)
CAMVID = flags.DEFINE_string('camvid', None, 'CamVid: train, trainannot, ...')

SCENES = (28, 85, 113)  # of the generated val, that figures show

Panels = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # picture, truth and prediction


def run(main: Callable[[str], None]) -> None:
  """`main(name)` of the study that was started, with the exit codes of `main.py`."""

  def parse(argv):
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      sys.exit(runtime.complain(str(error)))

  def study(argv):
    if argv[1:]:
      raise UserError(f'{argv[1]!r} is not expected; flags begin with --')
    runtime.start()
    main(Path(sys.modules['__main__'].__file__).stem)

  runtime.plain_warnings()
  app.run(runtime.exits(study), flags_parser=parse)


def trained(config: ml_collections.ConfigDict, workdir: Path) -> dict:
  """The scores of `config` by split, as in `eval/SPLIT.json`, and its `seconds` of training.

  Trains and evaluates, or goes on, unless `workdir` holds the finished run already. `seconds` are
  those of all steps at their median speed, without compilation, evaluation and interruptions.

  Raises:
    UserError: `workdir` holds a run with another config, or one of other pictures.
  """
  splits = settings.eval_splits(config)
  paths = {split: workdir / 'eval' / f'{split}.json' for split in splits}
  pictures_of = {
    split: repr(open_dataset(config.data, split, config.seed))
    for split in (config.train.split, *splits)
  }
  try:
    settings.for_training(config, workdir)
  except UserError as error:
    raise UserError(str(error).replace('--workdir', '--runs')) from None
  finished = workdir / 'finished.json'
  if not (finished.exists() and all(path.exists() for path in paths.values())):
    print(f'\n{workdir}', flush=True)
    stopped = loop.train(config, workdir)
    if _last_step(workdir) == config.train.num_steps:
      atomic.write_bytes(finished, json.dumps(pictures_of).encode())
    if stopped:
      raise SystemExit(0)
  if (known := json.loads(finished.read_text())) != pictures_of:
    raise UserError(
      f'{workdir} is of other pictures, {known}, than {pictures_of}; expected another --runs'
    )
  speeds = [line['images_per_second'] for line in read_metrics(workdir) if line['split'] == 'train']
  images = config.train.num_steps * config.data.batch_size
  scores = {split: json.loads(path.read_text()) for split, path in paths.items()}
  return scores | {'seconds': images / statistics.median(speeds)}


def _last_step(workdir: Path) -> int:
  with checkpoints.Checkpoints(workdir, read_only=True) as saved:
    return saved.find('last') or 0


def load(
  config: ml_collections.ConfigDict, workdir: Path, split: str
) -> tuple[int, dict, Task, Source]:
  """The step and the variables of the best checkpoint in `workdir`, its task, and a split."""
  source = open_dataset(config.data, split, config.seed)
  step, variables, info = checkpoints.load_variables(config, workdir, make_mesh(), source.info)
  return step, variables, build_task(config, info), source


def predicted(
  config: ml_collections.ConfigDict, workdir: Path, split: str, indices: Sequence[int]
) -> tuple[Panels, DatasetInfo]:
  """Picture, truth and prediction of some records, by the best checkpoint of `workdir`."""
  _, variables, task, source = load(config, workdir, split)
  predict = jax.jit(lambda variables, image: task.predict(variables, {'image': image})['label'])
  panels = []
  for index in indices:
    record = source[index]
    label = predict(variables, record['image'][None])[0]
    panels.append((record['image'], record['label'], np.asarray(label)))
  return panels, task.info


def num_parameters(config: ml_collections.ConfigDict, num_classes: int) -> int:
  """Of the model that `config` describes."""
  model = build_model(config, num_classes)
  image = jax.ShapeDtypeStruct((1, *config.data.crop_size, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params']))


def multiply_adds(jaxpr) -> int:
  """Of all convolutions and matrix products in a traced function, a loop's as often as it turns.

  (XLA's own analysis counts a loop's body once.) Of branches the last one counts: of the forms for
  several platforms, the plain one.
  """
  total = 0
  for equation in jaxpr.eqns:
    outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == 'conv_general_dilated':
      kernel = equation.invars[1].aval.shape
      total += (
        outputs * math.prod(kernel) // kernel[equation.params['dimension_numbers'].rhs_spec[0]]
      )
    elif equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      total += outputs * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    for branch in equation.params.get('branches', ())[-1:]:
      total += multiply_adds(branch.jaxpr)
    turns = equation.params.get('length', 1)  # of a scan
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += turns * multiply_adds(inner)
  return total


def needed(jaxpr):
  """`jaxpr` without what none of its outputs is made from, which XLA leaves out, too."""
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def in_turns(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
  """The median milliseconds of each function, whose result is waited for.

  The functions take turns, so that what slows the machine for a while slows all of them, and each
  is run once before it is timed: what the others left in caches and threads is gone by then.
  """
  times = {name: [] for name in functions}
  for _ in range(rounds):
    for name, function in functions.items():
      jax.block_until_ready(function())
      start = time.perf_counter()
      jax.block_until_ready(function())
      times[name].append(1000 * (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in times.items()}


def table(columns: Iterable[str], rows: Iterable[Iterable]) -> str:
  """A Markdown table; floats with three digits or all before the point, None as a dash."""

  def cell(value):
    if isinstance(value, float):
      return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return '-' if value is None else str(value)

  columns = list(columns)
  lines = [columns, ['---'] * len(columns), *([cell(value) for value in row] for row in rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def score_bars(axes: Axes, rows: dict[str, dict]) -> None:
  """mIoU and boundary IoU of each net, in percent."""
  for i, (key, title) in enumerate((('miou', 'mIoU'), ('boundary_iou', 'boundary IoU'))):
    at = np.arange(len(rows)) + 0.4 * i - 0.2
    bars = axes.barh(at, [100 * row[key] for row in rows.values()], 0.38, label=title)
    axes.bar_label(bars, fmt='%.1f', padding=2, fontsize=8)
  axes.set_yticks(np.arange(len(rows)), rows)
  axes.invert_yaxis()
  axes.set_xlabel('%')
  axes.margins(x=0.12)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize=8, ncols=2, loc='lower left', bbox_to_anchor=(0, 1))


def grid(figure: Figure | SubFigure, panels: dict[str, Panels], info: DatasetInfo) -> None:
  """A row for each picture: itself, its truth, and what each net makes of it."""
  axes = figure.subplots(len(next(iter(panels.values()))), 2 + len(panels), squeeze=False)
  for line, *shown in zip(axes, *panels.values(), strict=True):
    image, truth, _ = shown[0]
    labels = [truth, *(label for _, _, label in shown)]
    drawn = [image, *(pictures.colourise(label, info.palette) for label in labels)]
    for place, picture in zip(line, drawn, strict=True):
      place.imshow(picture, interpolation='nearest')
      place.set_axis_off()
  for place, title in zip(axes[0], ('picture', 'truth', *panels), strict=True):
    place.set_title(title, fontsize=9)


def side_by_side(nets: dict[str, tuple], split: str, path: Path, shown: int = 4) -> None:
  """Pictures spread over a split, their labels, and what each net (config, workdir) makes of them.

  For pictures that may not be passed on: as a file of `--runs`.
  """
  config, _ = next(iter(nets.values()))
  source = open_dataset(config.data, split, config.seed)
  indices = np.linspace(0, len(source) - 1, shown, dtype=int).tolist()
  panels = {net: predicted(*run, split, indices)[0] for net, run in nets.items()}
  palette = source.info.palette
  rows = []
  for line in zip(*panels.values(), strict=True):
    image, truth, _ = line[0]
    labels = [truth, *(label for *_, label in line)]
    rows.append([image, *(pictures.colourise(label, palette) for label in labels)])
  captions = [f'{split}, number {index}' for index in indices]
  headings = ('picture', 'truth', *panels)
  sheet = pictures.contact_sheet(rows, captions, (source.info.class_names, palette), headings)
  pictures.write_png(path, sheet)


def write(name: str, result: dict, page: str, figure: Figure, out: Path | None = None) -> None:
  """`NAME.json`, `NAME.png` and the page that shows it, `README.md`, into --out, or `out`."""
  out = Path(OUT.value or out or f'experiments/results/{name}')
  atomic.write_bytes(out / f'{name}.json', (json.dumps(result, indent=2) + '\n').encode())
  pictures.save_figure(out / f'{name}.png', figure)
  atomic.write_bytes(out / 'README.md', page.encode())
  print(f'\n{page}\nwritten to {out}')


def runs(name: str) -> Path:
  """Where the study's runs are kept."""
  return Path(RUNS.value or f'runs/studies/{name}')


def machine() -> dict:
  """What the times were measured on."""
  cpu = Path('/proc/cpuinfo')
  names = [n for n in (cpu.read_text() if cpu.exists() else '').splitlines() if 'model name' in n]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  device, plural = jax.devices()[0], 's' * (cores > 1)
  processor = names[0].partition(':')[2].strip() if names else platform.processor()
  cpus = f'{cores} core{plural} of {processor}'
  return {
    'name': cpus if device.platform == 'cpu' else device.device_kind,
    'cores': cores,
    'versions': {name: importlib.metadata.version(name) for name in ('jax', 'flax')},
  }
