"""How fast the systems are: compilation, forward pass and training step, beside PyTorch's.

    python -m experiments.benchmark                                # minutes for each row
    python -m experiments.benchmark --systems=unet,segnet --shapes=4x256x256
    python -m experiments.benchmark --quick                        # a minute; does everything once

Each side, ours, PyTorch eager and PyTorch compiled, is a process of its own, and they are timed in
turns, so that only one is at work at any time and what slows the machine slows them all. Among them
is a product of large matrices: of its speed, the peak, each step has a share. A side that fails, or
whose process dies, leaves a line that says so. Without PyTorch, and for systems that it has no
counterpart of in `torch_models`, our side is measured alone.

Writes `benchmark.json`, `benchmark.png` and `README.md` into `--out` (with --quick into `--runs`
unless told otherwise). Nothing else should run meanwhile.
"""

import contextlib
import functools
import json
import statistics

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import benchmark_jax, study
from experiments.benchmark_sides import Worker, WorkerError
from seg_jax.errors import UserError, nearest

try:
  from experiments import torch_models
except ImportError:
  torch_models = None

SYSTEMS = (
  'unet',
  'segnet',
  'segnet_basic',
  'fcn8s',
  'fcn_resnet',
  'deeplab_v3',
  'deeplab_v3plus',
  'hrnet',
  'refinenet',
)
_SYSTEMS = flags.DEFINE_list('systems', None, f'files of configs/; else {",".join(SYSTEMS)}')
_SHAPES = flags.DEFINE_list(
  'shapes', None, 'pictures x rows x columns; else 4x128x128,2x256x256, or 32x512x512 on a GPU'
)
_QUICK = flags.DEFINE_bool(
  'quick', False, 'a narrow U-Net, few rounds: to see that all of it works'
)

LARGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}  # as in run.sh
CLASSES = 21
ROUNDS, QUICK_ROUNDS = 11, 2  # of turns; the median counts
SIDES = OURS, EAGER, COMPILED = 'seg_jax', 'PyTorch', 'PyTorch compiled'
PEAK = 'peak'
PASSES = {'forward': 'forward', 'train': 'training step'}
EXPLAINED = """
**What is compared.** Both sides get the same uint8 pictures and labels, on the device, one device,
and give them back only when all is done. The forward pass is normalisation and the net in
evaluation mode, up to float32 logits at full size. The training step is normalisation, the net in
training mode with batch statistics, cross entropy without the ignored pixels (and that of the
auxiliary head, if there is one), all gradients, and AdamW with decay of the kernels alone. Ours is
the suite's own step, one program whose state is donated, and also computes the norm of the gradient
for the log; PyTorch's is forward, `backward` and its fused AdamW, channels-last, with the model and
its loss under `torch.compile` in the compiled form. {precision} On Linux, all sides have their
arrays in large pages, as `./run.sh` asks for.

DeepLab v3 and FCN on ResNet-50 are torchvision's; the others are written for this page in
`experiments/torch_models.py`, layer by layer the same as ours; both have equally many parameters.

**Ratio** is our time by PyTorch's better one: below 1, ours is faster. **Of peak** is the share
of the machine's peak, the speed of a product of two large matrices in turns with the steps, that
the model's multiply-adds reach: those of convolutions and matrix products in the forward pass, for
training three times as many, the same number for all sides. Depthwise convolutions, norms,
activations and resizing are not counted, nor what a large rate reads of nothing but padding. The
definition's are counted, so a form with fewer, as Winograd's, may have more than all of the peak.
A call includes its way through the pipe to the process and back, about a tenth of a millisecond on
all sides.

**Compilation** is ours, traced and compiled without any cache, and the first call of
`torch.compile`'s. FLOPs and bytes are XLA's own count of its program (a loop's body once; what is
inside of library calls may be missing). **Memory** of ours is what XLA plans for: parameters,
optimizer, batch, results, and what lies between. {memory}
"""
PRECISION = {
  'float32': 'All is float32.',
  'bfloat16': 'Parameters are float32; the computation is bfloat16, by autocast in PyTorch.',
}
MEMORY = {
  'cpu': "PyTorch's is what its process has grown by at most, allocator, compiler and all.",
  'gpu': "PyTorch's is the peak of what its allocator has handed out.",
}


def shapes(texts: list[str]) -> list[tuple[int, ...]]:
  """Of '4x128x128', the batch's size, rows and columns.

  Raises:
    UserError: something else.
  """
  found = []
  for text in texts:
    numbers = text.split('x')
    if len(numbers) != 3 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
      raise UserError(f'--shapes: {text!r}; expected pictures x rows x columns, such as 4x128x128')
    found.append(tuple(map(int, numbers)))
  return found


def specification(system: str, shape: tuple[int, ...], machine: dict, quick: bool) -> dict:
  """All that either side has to know to build a system; plain values, as they go through a pipe.

  Raises:
    UserError: there is no such system.
  """
  dtype = 'float32' if machine['platform'] == 'cpu' else 'bfloat16'
  fields = {'width': 8} if quick and system == 'unet' else {}
  try:
    config = benchmark_jax.configuration(system, fields, dtype)
  except ModuleNotFoundError:
    raise UserError(f'--systems: {system!r}{nearest(system, SYSTEMS)}') from None
  return {
    'system': system,
    'fields': fields,
    'model': config.model.to_dict(),
    'classes': CLASSES,
    'shape': shape,
    'dtype': dtype,
    'device': 'cpu' if machine['platform'] == 'cpu' else 'cuda',
    'cores': machine['cores'],
    'mean': config.data.mean,
    'std': config.data.std,
    'auxiliary': config.loss.auxiliary,
    'learning_rate': config.optimizer.learning_rate,
    'weight_decay': config.optimizer.weight_decay,
  }


def start(side: str) -> Worker:
  """The process of a side."""
  if side == OURS:
    own = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    return Worker('-m', 'experiments.benchmark_jax', **own, **LARGE_PAGES)
  own = {'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1'}
  return Worker('-m', 'experiments.benchmark_torch', **own, **LARGE_PAGES)


def sides(system: str, machine: dict) -> list[str]:
  """Those that can be measured."""
  if torch_models and system in torch_models.NETS and machine['platform'] in ('cpu', 'gpu'):
    return [OURS, EAGER, COMPILED]
  return [OURS]


def measure(spec: dict, names: list[str], rounds: int) -> dict:
  """What the system of `spec` needs on the sides `names`; an `error` of each that has failed."""
  results = {name: {} for name in names}
  row = {'system': spec['system'], 'shape': spec['shape'], 'sides': results, 'ratio': {}}
  with contextlib.ExitStack() as stack:
    workers = {name: stack.enter_context(start(name)) for name in names}

    def ask(name: str, method: str, what: str | None = None, **arguments):
      """The answer; None of a side that has failed, which is not asked again."""
      if name not in workers:
        return None
      try:
        return workers[name](method, **({'what': what} if what else {}), **arguments)
      except WorkerError as error:
        del workers[name]
        results[name]['error'] = f'{PASSES.get(what, method)}: {error}'

    for name in names:
      compiled = {} if name == OURS else {'compiled': name == COMPILED}
      results[name] |= ask(name, 'build', spec=spec, **compiled) or {}
    for what in PASSES:
      for name in names:
        if report := ask(name, 'first', what):
          results[name][what] = report
      operations = ask(OURS, 'multiply')
      calls = {name: functools.partial(ask, name, 'call', what) for name in workers}
      times = study.in_turns({PEAK: functools.partial(ask, OURS, 'multiply'), **calls}, rounds)
      peak = operations / times[PEAK] if OURS in workers else None  # of a millisecond
      for name in names:
        if name not in workers:
          results[name].pop(what, None)
          continue
        figures = {'ms': times[name], 'images_per_s': 1000 * spec['shape'][0] / times[name]}
        if peak:
          done = results[OURS][what]['flops'] / times[name]
          figures |= {'share_of_peak': done / peak, 'peak_gflops': peak / 1e6}
        results[name][what] |= figures
      theirs = [times[name] for name in workers if name != OURS]
      if theirs and OURS in workers:
        row['ratio'][what] = times[OURS] / min(theirs)
  return row


def label(row: dict) -> str:
  return f'{row["system"]}, {" x ".join(map(str, row["shape"]))}'


def value(row: dict, what: str, side: str, key: str, unit: float = 1.0) -> float | None:
  """A figure of a row in `unit`s, None if it is not there."""
  found = row['sides'].get(side, {}).get(what, {}).get(key)
  return None if found is None else found / unit


def failures(row: dict) -> list[str]:
  return [f'{name}: {side["error"]}' for name, side in row['sides'].items() if 'error' in side]


def speeds(rows: list[dict]) -> str:
  """The table of times."""
  columns = ('system, pictures', 'pass', *(f'{name}, ms' for name in SIDES), 'ratio')
  columns += (f'{OURS}, images/s', *(f'{name}, of peak' for name in SIDES))
  lines = []
  for row in rows:
    for what, title in PASSES.items():
      get, ratio = functools.partial(value, row, what), row['ratio'].get(what)
      times = (get(name, 'ms') for name in SIDES)
      shares = (get(name, 'share_of_peak', 0.01) for name in SIDES)
      line = label(row), title, *times, ratio and f'**{ratio:.2f}**', get(OURS, 'images_per_s')
      lines.append((*line, *(share and f'{share:.0f} %' for share in shares)))
  return study.table(columns, lines)


def costs(rows: list[dict]) -> str:
  """The table of compilation, operations and memory."""
  columns = ('system, pictures', 'pass', 'parameters, M', 'compilation, s', 'torch.compile, s')
  columns += ('GFLOP', 'XLA, GFLOP', 'XLA, GB', 'memory, MiB', 'of it temporary')
  columns += tuple(f'{name}, MiB' for name in (EAGER, COMPILED))
  lines = []
  for row in rows:
    for what, title in PASSES.items():
      get, parameters = functools.partial(value, row, what), row['sides'][OURS].get('parameters')
      lines.append(
        (
          label(row),
          title,
          parameters and f'{parameters / 1e6:.2f}',
          *(get(name, 'seconds') for name in (OURS, COMPILED)),
          *(get(OURS, key, 1e9) for key in ('flops', 'xla_flops', 'xla_bytes')),
          *(get(OURS, key, 2**20) for key in ('memory', 'temporary')),
          *(get(name, 'memory', 2**20) for name in (EAGER, COMPILED)),
        )
      )
  return study.table(columns, lines)


def chart(rows: list[dict]) -> Figure:
  """The share of the machine's peak that each side reaches."""
  figure = Figure(figsize=(11, 0.55 * len(rows) + 1.4), layout='constrained', dpi=130)
  for axes, (what, title) in zip(figure.subplots(1, 2, sharey=True), PASSES.items(), strict=True):
    for i, name in enumerate(SIDES):
      shares = [value(row, what, name, 'share_of_peak', 0.01) or np.nan for row in rows]
      bars = axes.barh(np.arange(len(rows)) + 0.27 * (i - 1), shares, 0.25, label=name)
      texts = ['' if np.isnan(share) else f'{share:.0f}' for share in shares]
      axes.bar_label(bars, texts, padding=2, fontsize=7)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("% of the machine's peak")
    axes.margins(x=0.1)
    axes.spines[['top', 'right']].set_visible(False)
  axes.set_yticks(np.arange(len(rows)), map(label, rows), fontsize=8)
  axes.yaxis.set_inverted(True)
  figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', ncols=len(SIDES))
  return figure


def page(result: dict) -> str:
  machine, rows = result['machine'], result['rows']
  versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
  peaks = [value(row, what, OURS, 'peak_gflops') for row in rows for what in PASSES]
  peaks = [peak for peak in peaks if peak]
  peak = f'; peak {statistics.median(peaks):,.0f} GFLOP/s' if peaks else ''
  failed = [f'- {label(row)}, {failure}' for row in rows for failure in failures(row)]
  explained = EXPLAINED.format(
    precision=PRECISION[result['dtype']], memory=MEMORY.get(machine['platform'], '')
  )
  return (
    '# Speed and memory of the systems\n\n'
    f'{machine["name"]}; {versions}; {CLASSES} classes; medians of {result["rounds"]} measurements '
    f'in turns{peak}.\n\n{speeds(rows)}\n\n'
    + ('\n'.join(['What failed:\n', *failed]) + '\n\n' if failed else '')
    + f'![share of peak](benchmark.png)\n\n{costs(rows)}\n{explained}'
  )


def main(name):
  quick = _QUICK.value
  with start(OURS) as worker:
    machine = worker('machine')
  if torch_models:
    machine['versions']['torch'] = torch_models.torch.__version__
  usual = ['4x128x128', '2x256x256'] if machine['platform'] == 'cpu' else ['32x512x512']
  sizes = shapes(_SHAPES.value or (['2x32x32'] if quick else usual))
  systems = _SYSTEMS.value or (['unet'] if quick else SYSTEMS)
  specs = [specification(system, size, machine, quick) for system in systems for size in sizes]
  print(f'measured on {machine["name"]}', flush=True)
  rounds, rows = QUICK_ROUNDS if quick else ROUNDS, []
  for spec in specs:
    rows.append(measure(spec, sides(spec['system'], machine), rounds))
    print(json.dumps(rows[-1]), flush=True)  # what a stop would leave
  result = {'machine': machine, 'rounds': rounds, 'dtype': specs[0]['dtype'], 'rows': rows}
  out = study.runs(name) / 'quick' if quick else None
  study.write(name, result, page(result), chart(rows), out)


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # for this process, which only asks and waits
  study.run(main)
