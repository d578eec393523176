"""Max pooling and unpooling beside PyTorch's, on the same cores in one run.

    python -m experiments.pooling_speed

SegNet pools each stage and, on the way back up, puts what the decoder has in between to where the
maxima stood. Measured is all of that for a stage, forward and backward: the pooled map and the
unpooled one from the encoder's map and the decoder's values, and gradients of these from gradients
of those. Then max pooling alone: forward, and its gradient given what the forward pass has kept.

PyTorch, which has to be installed (`pip install -e '.[parity]'`), is given both of its memory
layouts, and the faster one counts. Before anything is timed both systems have to give the same
numbers. Memory that is freed stays with the process, so that fresh pages, which cost both the same,
are not what is measured.

Writes `pooling_speed.json`, `pooling_speed.png` and `README.md` into `--out`, in a minute. Nothing
else should run meanwhile.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import study
from seg_jax.errors import UserError
from seg_jax.ops.pooling import max_pool, max_pool_with_argmax
from seg_jax.ops.unpooling import max_unpool

try:
  import torch
  from torch.nn import functional
except ImportError:
  torch = None

ROUNDS = 15  # measurements of each; the median counts
STAGES = (  # what SegNet pools: [N, H, W, C] of four pictures of 192 x 256
  (4, 192, 256, 64),
  (4, 96, 128, 128),
  (4, 48, 64, 256),
  (4, 24, 32, 512),
  (4, 12, 16, 512),
)
POOLINGS = (  # VGG's first two, and ResNet's: a map, and (window, stride, padding)
  ((4, 192, 256, 64), (2, 2, 0)),
  ((4, 96, 128, 128), (2, 2, 0)),
  ((4, 96, 128, 64), (3, 2, 1)),
)
OURS, NCHW, NHWC = 'seg_jax', 'PyTorch, NCHW', 'PyTorch, NHWC'


def segnet_stage(shape: tuple[int, ...]) -> dict[str, Callable]:
  """For each system a function that does all of a stage and returns its four results."""
  n, height, width, channels = shape
  half = (n, height // 2, width // 2, channels)
  x, values, *gradients = normal(shape, half, half, shape)

  @jax.jit
  def ours(x, values, *gradients):
    def stage(x, values):
      pooled, positions = max_pool_with_argmax(x)
      return pooled, max_unpool(values, positions, (height, width))

    outputs, pullback = jax.vjp(stage, x, values)
    return *outputs, *pullback(gradients)

  def theirs(x, values, *gradients):
    pooled, indices = functional.max_pool2d(x, 2, return_indices=True)
    outputs = pooled, functional.max_unpool2d(values, indices, 2)
    return *outputs, *torch.autograd.grad(outputs, (x, values), gradients)

  arrays = [jax.device_put(a) for a in (x, values, *gradients)]
  functions = {OURS: lambda: ours(*arrays)}
  for name in (NCHW, NHWC):
    inputs = [tensor(a, name).requires_grad_() for a in (x, values)]
    tensors = inputs + [tensor(a, name) for a in gradients]
    functions[name] = functools.partial(theirs, *tensors)
  return functions


def pooling(shape: tuple[int, ...], geometry: tuple[int, int, int]) -> tuple[dict, dict]:
  """For each system a function that pools, and one that does the gradient alone."""
  forward = jax.jit(lambda x: jax.vjp(lambda x: max_pool(x, *geometry), x))
  backward = jax.jit(lambda pullback, gradient: pullback(gradient))
  (x,) = normal(shape)
  array = jax.device_put(x)
  pooled, pullback = forward(array)
  (gradient,) = normal(pooled.shape)
  placed = jax.device_put(gradient)
  ahead = {OURS: lambda: forward(array)[:1]}
  back = {OURS: lambda: backward(pullback, placed)}
  for name in (NCHW, NHWC):
    t = tensor(x, name).requires_grad_()
    pool = functools.partial(functional.max_pool2d, t, *geometry)
    keeping = functools.partial(torch.autograd.grad, pool(), t, tensor(gradient, name))
    ahead[name] = lambda pool=pool: (pool(),)
    back[name] = functools.partial(keeping, retain_graph=True)
  return ahead, back


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
  """Random maps; the first as if from a ReLU, with many ties."""
  rng = np.random.default_rng(0)
  first, *others = (rng.standard_normal(shape, np.float32) for shape in shapes)
  return [np.maximum(first, 0), *others]


def tensor(array: np.ndarray, name: str):
  layout = {NCHW: torch.contiguous_format, NHWC: torch.channels_last}[name]
  return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=layout)


def milliseconds(functions: dict[str, Callable]) -> dict[str, float]:
  """The median of each, measured in turns; AssertionError if their results differ."""
  expected = functions[OURS]()
  for name in (NCHW, NHWC):
    for ours, theirs in zip(expected, functions[name](), strict=True):
      np.testing.assert_allclose(ours, theirs.detach().permute(0, 2, 3, 1), atol=1e-5)
  return study.in_turns(functions, ROUNDS)


def cases() -> Iterator[tuple[str, tuple, tuple, dict]]:
  """What is measured, of which map and windows, and the functions."""
  for shape in STAGES:
    yield 'pool and unpool, both ways', shape, (2, 2, 0), segnet_stage(shape)
  for shape, geometry in POOLINGS:
    forward, backward = pooling(shape, geometry)
    yield 'max pooling, forward', shape, geometry, forward
    yield 'max pooling, backward', shape, geometry, backward


def measure() -> list[dict]:
  rows = []
  for what, shape, geometry, functions in cases():
    times = milliseconds(functions)
    print(f'{what}, {shape}: ' + ', '.join(f'{k} {v:.2f} ms' for k, v in times.items()), flush=True)
    rows.append({'what': what, 'map': shape, 'window': geometry, 'milliseconds': times})
  stages = [row['milliseconds'] for row in rows[: len(STAGES)]]
  total = {name: sum(times[name] for times in stages) for name in stages[0]}
  rows.insert(len(STAGES), {'what': rows[0]['what'], 'map': 'all five', 'milliseconds': total})
  for row in rows:
    times = row['milliseconds']
    row['speedup'] = min(times[NCHW], times[NHWC]) / times[OURS]
  return rows


def keep_memory() -> None:
  """Lets the process keep what it frees, in one heap, for both systems; glibc alone can do that.

  Otherwise half of what is timed of the largest maps is the kernel handing out fresh pages.
  """
  m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):
    for option, value in ((m_arena_max, 1), (m_mmap_max, 0), (m_trim_threshold, 2**31 - 1)):
      libc.mallopt(option, value)


def label(row: dict) -> str:
  if 'window' not in row:
    return f'{row["what"]}: all of SegNet'
  size, stride, _ = row['window']
  return f'{row["what"]}: {" x ".join(map(str, row["map"]))}, window {size}, stride {stride}'


def chart(rows: list[dict]) -> Figure:
  figure = Figure(figsize=(9, 0.35 * len(rows) + 0.8), layout='constrained', dpi=130)
  axes = figure.subplots()
  colours = ['C0' if 'unpool' in row['what'] else 'C1' for row in rows]
  bars = axes.barh([label(row) for row in rows], [row['speedup'] for row in rows], color=colours)
  axes.bar_label(bars, fmt='%.1f', padding=3)
  axes.axvline(1, color='black', linewidth=0.8)
  axes.invert_yaxis()
  axes.margins(x=0.1)
  axes.set_xlabel('times as fast as PyTorch')
  axes.spines[['top', 'right']].set_visible(False)
  return figure


def page(result: dict) -> str:
  machine = result['machine']
  versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
  rows = [
    (label(row), *(f'{row["milliseconds"][name]:.2f}' for name in (OURS, NCHW, NHWC)), speedup)
    for row, speedup in ((row, f'**{row["speedup"]:.1f}**') for row in result['rows'])
  ]
  columns = ('float32 [N, H, W, C]', *(f'{name}, ms' for name in (OURS, NCHW, NHWC)), 'speed')
  return (
    '# Max pooling and unpooling beside PyTorch\n\n'
    f'{machine["name"]}; {versions}; medians of {result["rounds"]}'
    " measurements in turns. Speed is PyTorch's time in its better layout by ours.\n\n"
    f'{study.table(columns, rows)}\n\n![speeds](pooling_speed.png)\n'
  )


def main(name):
  if torch is None:
    raise UserError("PyTorch is what is compared with: pip install -e '.[parity]'")
  jax.config.update('jax_default_device', jax.devices('cpu')[0])  # where PyTorch runs, too
  machine = study.machine()
  torch.set_num_threads(machine['cores'])
  machine['versions']['torch'] = torch.__version__
  result = {'machine': machine, 'rounds': ROUNDS, 'rows': measure()}
  study.write(name, result, page(result), chart(result['rows']))


if __name__ == '__main__':
  keep_memory()  # before there are threads, which would have heaps of their own
  study.run(main)
