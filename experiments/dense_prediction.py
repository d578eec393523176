"""From a label for each window to a label for each pixel: one patch classifier, run in four ways.

    python -m experiments.dense_prediction                # trained on generated scenes
    python -m experiments.dense_prediction --nuclei=DIR   # on nuclei: DIR is dsb2018's data.dir

A net that labels the middle pixel of its window is trained once, then run over pictures of
128 x 128 pixels: window by window, one crop a pixel; by shift-and-stitch, one coarse pass for each
shift; à trous; and by a single coarse pass, each score filling its cell. How far the results lie
apart, and what each way costs in multiply-adds, time and memory.

Writes `dense_prediction.json`, `dense_prediction.png` and `README.md` into `--out`. Training goes
on after a stop. Nothing else should run meanwhile.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from configs import sliding_window
from experiments import study
from seg_jax import pictures
from seg_jax.errors import UserError

_NUCLEI = flags.DEFINE_string('nuclei', None, 'dsb2018, which holds stage1_train')

STEPS = 400  # of training
ROUNDS = 9  # measurements of each way but the slowest; the median counts
SIZE = 128  # rows and columns of the pictures
COUNT = 3  # of them
WAYS = {
  'crops': 'window by window',
  'shift_and_stitch': 'shift-and-stitch',
  'atrous': 'à trous',
  'heatmap': 'one coarse pass',
}


def get_config(steps: int):
  config = sliding_window.get_config('shapes' if _NUCLEI.value is None else 'dsb2018')
  if _NUCLEI.value is not None:
    config.data.dir = _NUCLEI.value
  config.dtype = 'float32'
  # A window of 98 pixels, about that of Ciresan et al.
  config.model.update({'width': 16, 'convolutions': 3, 'hidden': 64})
  config.data.update({'batch_size': 8, 'crop_size': (96, 96), 'shapes_size': (SIZE, SIZE)})
  config.optimizer.learning_rate = 4e-3
  config.train.update({'num_steps': steps, 'eval_every': steps, 'checkpoint_every': 100})
  config.eval.batch_size = 2
  return config


def middles(source) -> list[tuple[np.ndarray, np.ndarray]]:
  """The middles of the pictures, uint8 [SIZE, SIZE, C], and of their labels.

  Of `COUNT` pictures, those where the label changes most often from one pixel to the next.
  """
  parts = []
  for record in (source[i] for i in range(len(source)) if min(source.size(i)) >= SIZE):
    top, left = ((length - SIZE) // 2 for length in record['label'].shape)
    inside = slice(top, top + SIZE), slice(left, left + SIZE)
    parts.append((record['image'][inside], record['label'][inside]))

  def changes(part):
    _, label = part
    down, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    return np.count_nonzero(down) + np.count_nonzero(right)

  if len(parts) < COUNT:
    raise UserError(f'{len(parts)} pictures of val have {SIZE} rows and columns; expected {COUNT}')
  return sorted(parts, key=changes, reverse=True)[:COUNT]


def run(task, variables, images: list[np.ndarray], rounds: int) -> dict:
  """The logits of each picture, and what one picture costs."""

  def logits(variables, image):
    return task.predict(variables, {'image': image})['logits'][0]

  traced = jax.jit(logits).trace(variables, images[0][None])
  compiled = traced.lower().compile()
  outputs = [np.asarray(compiled(variables, image[None])) for image in images]
  seconds = []
  for _ in range(rounds):
    start = time.perf_counter()
    jax.block_until_ready(compiled(variables, images[0][None]))
    seconds.append(time.perf_counter() - start)
  return {
    'logits': outputs,
    'multiply_adds': study.multiply_adds(traced.jaxpr.jaxpr),
    'seconds': statistics.median(seconds),
    'bytes': compiled.memory_analysis().temp_size_in_bytes,
  }


def compare(runs: dict) -> dict:
  """What the ways cost, and how far each is from the windows themselves."""
  reference = np.stack(runs['crops'].pop('logits'))
  rows = {'crops': runs['crops'] | {'difference': 0.0, 'agreement': 1.0}}
  for way in list(runs)[1:]:
    logits = np.stack(runs[way].pop('logits'))
    rows[way] = runs[way] | {
      'difference': float(np.abs(logits - reference).max()),
      'agreement': float((logits.argmax(-1) == reference.argmax(-1)).mean()),
    }
  return rows


def chart(parts, maps: dict, rows: dict, palette) -> Figure:
  """Pictures, truths and maps of 1 - p(background) on the left, the ways' times on the right."""
  figure = Figure(figsize=(12, 5.2), layout='constrained', dpi=130)
  left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
  grid = left.subplots(len(parts), 2 + len(maps), squeeze=False)
  for i, (image, truth) in enumerate(parts):
    shown = {'picture': image, 'truth': pictures.colourise(truth, palette)}
    shown |= {title: planes[i] for title, planes in maps.items()}
    for axes, (title, picture) in zip(grid[i], shown.items(), strict=True):
      axes.imshow(picture, interpolation='nearest', cmap='magma', vmin=0, vmax=1)
      axes.set_axis_off()
      if i == 0:
        axes.set_title(title, fontsize=10)
  bars = right.subplots()
  seconds = [row['seconds'] for row in rows.values()]
  bars.barh([WAYS[way] for way in rows], seconds, color='#1f6fb4', log=True)
  for i, row in enumerate(rows.values()):
    ratio = row['seconds'] / rows['atrous']['seconds']
    bars.text(row['seconds'], i, f' {duration(row["seconds"])}, {times(ratio)}x', va='center')
  bars.invert_yaxis()
  bars.set_xlim(min(seconds) / 3, max(seconds) * 100)
  bars.set_xlabel('seconds for one picture; times that of à trous', fontsize=9)
  bars.spines[['top', 'right']].set_visible(False)
  return figure


def duration(seconds: float) -> str:
  return f'{seconds:.1f} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'


def times(ratio: float) -> str:
  return f'{ratio:,.0f}' if ratio >= 10 else f'{ratio:.2g}'


def page(result: dict) -> str:
  ways = result['ways']
  base = ways['atrous']
  columns = ('way', 'largest difference', 'same label', 'GMAC', 'time', 'memory')
  columns += ('GMAC, ratio', 'time, ratio', 'memory, ratio')
  rows = [
    (
      WAYS[way],
      f'{row["difference"]:.1g}',
      f'{100 * row["agreement"]:.2f} %',
      times(row['multiply_adds'] / 1e9),
      duration(row['seconds']),
      f'{row["bytes"] / 2**20:.3g} MiB',
      *(times(row[key] / base[key]) for key in ('multiply_adds', 'seconds', 'bytes')),
    )
    for way, row in ways.items()
  ]
  crops, stitch, coarse = (ways[way] for way in ('crops', 'shift_and_stitch', 'heatmap'))
  shared = crops['multiply_adds'] / base['multiply_adds']
  return (
    '# Dense prediction with one patch classifier\n\n'
    f'{result["machine"]["name"]}. The net labels the middle '
    f'pixel of a window of {result["window"]} x {result["window"]}, with a stride of '
    f'{result["stride"]}; {result["steps"]} steps of training on `{result["dataset"]}`, '
    f'{100 * result["miou"]:.1f} % mIoU on val. Pictures of {SIZE} x {SIZE}, {COUNT} for the '
    'differences, one for the costs.\n\n'
    f'{study.table(columns, rows)}\n\n'
    'Differences are of scores, the largest over all pixels and classes, to those of the windows, '
    f'whose standard deviation is {result["deviation"]:.1f}. Multiply-adds (MAC) are counted from '
    'the traced programs, convolutions only, a loop as often as it turns; memory is what XLA '
    'allocates besides arguments and results. Ratios are to à trous.\n\n'
    '- **Features are not shared.** Window by window, what à trous computes once is computed '
    f'{shared:.0f} times on average.\n'
    f'- **Very inefficient.** It takes {crops["seconds"] / base["seconds"]:.0f} times as long.\n'
    '- **À trous is the efficient shift-and-stitch.** The same map with '
    f'{stitch["multiply_adds"] / base["multiply_adds"]:.1f} times fewer multiply-adds, in '
    f'{stitch["seconds"] / base["seconds"]:.1f} times less time; memory is '
    f'{base["bytes"] / 2**20:.1f} MiB against {stitch["bytes"] / 2**20:.1f} MiB.\n'
    f'- **The coarse pass** costs {base["seconds"] / coarse["seconds"]:.1f} times less than à '
    f'trous, and labels {100 * (1 - coarse["agreement"]):.1f} % of the pixels otherwise.\n\n'
    '![the ways](dense_prediction.png)\n'
  )


def main(name):
  steps = study.STEPS.value or STEPS
  config = get_config(steps)
  workdir = study.runs(name) / config.data.name
  scores = study.trained(config, workdir)
  _, variables, task, source = study.load(config, workdir, 'val')
  parts = middles(source)
  images = [image for image, _ in parts]
  runs = {}
  for way in WAYS:
    changed = dataclasses.replace(task, model=task.model.clone(method=way))
    runs[way] = run(changed, variables, images, 1 if way == 'crops' else ROUNDS)
    print(f'{WAYS[way]}: {duration(runs[way]["seconds"])} a picture', flush=True)
  deviation = float(np.std(runs['crops']['logits']))
  maps = {
    f'P(object), {WAYS[way]}': 1 - np.asarray(jax.nn.softmax(np.stack(runs[way]['logits'])))[..., 0]
    for way in ('heatmap', 'atrous')
  }
  rows = compare(runs)
  result = {
    'machine': study.machine(),
    'dataset': config.data.name,
    'steps': steps,
    'miou': scores['val']['miou'],
    'window': task.model.window,
    'stride': task.model.stride,
    'deviation': deviation,
    'ways': rows,
  }
  figure = chart(parts, maps, rows, task.info.palette)
  study.write(name, result, page(result), figure)


if __name__ == '__main__':
  study.run(main)
