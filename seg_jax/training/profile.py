"""Where the time of a step goes: a trace for TensorBoard's profile plugin, and a page of text."""

import collections
import re
from collections.abc import Callable
from pathlib import Path

import jax

from seg_jax import atomic

FIRST, LAST = 4, 8  # the calls that are traced; those before them warm up
_TOP = 20  # rows of each table
_NAMED = re.compile(r'^\s*(?:ROOT )?%?(\S+) = .*?metadata={[^}]*?op_name="([^"]+)"', re.MULTILINE)
_TRANSFORMATION = re.compile(r'(jit|jvp|transpose|pmap|while|body|cond|branch_\d+_fun)\b')


class Profiler:
  """`steps`, compiled, as a function that traces a few of its calls into `workdir`/profile."""

  def __init__(self, steps: Callable, workdir: Path):
    self._steps, self._directory, self._calls = steps, workdir / 'profile', 0

  def __call__(self, *arguments):
    self._calls += 1
    if self._calls == FIRST:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # it would slow the loader down
      jax.profiler.start_trace(self._directory, profiler_options=options)
    results = self._steps(*arguments)
    if self._calls == LAST:
      jax.block_until_ready(results)
      self.close()
      text = summary(self._directory, self._steps.as_text(), LAST - FIRST + 1)
      atomic.write_bytes(self._directory / 'summary.txt', text.encode())
      print(f'\n{text}\ntrace and summary: {self._directory} (tensorboard --logdir)')
    return results

  def close(self) -> None:
    """Ends a trace that the calls were too few for."""
    if FIRST <= self._calls <= LAST:
      jax.profiler.stop_trace()
      self._calls = LAST + 1


def summary(directory: Path, program: str, calls: int) -> str:
  """Tables of the layers and of the operations that a call spends most of its time in.

  `program` is the compiled program's text: it says which layer an instruction of the trace comes
  from. What several threads or devices do at the same time is added up.
  """
  sources = dict(_NAMED.findall(program))
  module = re.match(r'HloModule ([^\s,]+)', program)[1]
  layers, operations = collections.Counter(), collections.Counter()
  for instruction, seconds in _instructions(directory, module):
    layer, operation = _place(sources.get(instruction, 'of no layer/of no layer'))
    layers[layer] += seconds / calls
    operations[operation] += seconds / calls
  return '\n\n'.join(
    _table(title, counts) for title, counts in (('layer', layers), ('operation', operations))
  )


def _instructions(directory: Path, module: str):
  """`(name, seconds)` of the instructions of a program in the newest trace below `directory`."""
  newest = max(directory.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
  for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        if stats.get('hlo_module') == module:
          yield stats.get('hlo_op'), event.duration_ns / 1e9


def _place(source: str) -> tuple[str, str]:
  """A layer's path and direction, and the primitive, of `jit(f)/transpose(jvp(UNet))/a/b/conv`."""
  *path, operation = source.partition(';')[0].split('/')
  back = any('transpose(' in part for part in path)
  names = [part for part in path if not _TRANSFORMATION.match(part)]
  return '/'.join(names) + (', backward' if back else ''), operation


def _table(title: str, counts: collections.Counter) -> str:
  total = sum(counts.values()) or 1.0
  rows = [f'{"ms a call":>10} {"share":>6}  {title}']
  rows += [
    f'{1000 * seconds:>10.2f} {seconds / total:>6.1%}  {name}'
    for name, seconds in counts.most_common(_TOP)
  ]
  return '\n'.join(rows)
