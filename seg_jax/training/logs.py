"""What a run tells while it goes on: `metrics.jsonl`, TensorBoard's events, and a progress bar."""

import json
import math
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from seg_jax import atomic
from seg_jax.errors import RunError


def read_metrics(workdir: Path) -> list[dict]:
  """The lines of `metrics.jsonl`; one that a kill cut short is left out."""
  path = workdir / 'metrics.jsonl'
  lines = []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines


class Recorder:
  """Records a run, reading a call's results only once the next call is under way.

  Lines of steps after `start_step`, which a killed run may have left, are dropped from
  `metrics.jsonl`: those steps are done again. Of several processes the first one alone records.
  """

  def __init__(
    self, workdir: Path, *, start_step: int, num_steps: int, batch_size: int, log_every: int
  ):
    first = jax.process_index() == 0
    live = sys.stderr.isatty() or 'ipykernel' in sys.modules  # a terminal or a notebook
    path = workdir / 'metrics.jsonl'
    kept = [line for line in read_metrics(workdir) if line['step'] <= start_step]
    if first:
      atomic.write_bytes(path, ''.join(json.dumps(line) + '\n' for line in kept).encode())
    self._file = (path if first else Path(os.devnull)).open('a', buffering=1)
    self._events = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start_step + 1, write_to_disk=first
    )
    self._bar = tqdm(
      total=num_steps,
      initial=start_step,
      desc='train',
      unit='step',
      disable=not first,
      dynamic_ncols=True,
      mininterval=1.0 if live else 30.0,  # a log file gets a line now and then
    )
    self._num_steps, self._batch_size, self._log_every = num_steps, batch_size, log_every
    self._pending = None
    self._restart_clock()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()
    self._file.close()
    self._events.close()

  def draw(self, batches) -> dict:
    """The next batch; the time that it takes counts as waiting for data."""
    before = time.perf_counter()
    batch = next(batches)
    self._waited += time.perf_counter() - before
    return batch

  def took(self, step: int, logs: dict, names: list[list[str]]) -> None:
    """The steps up to `step` were dispatched; settles those before.

    `logs` are arrays with one value a step, `names` the pictures of each.
    """
    self.settle()
    self._pending = step, logs, names
    self._steps += len(names)
    self._bar.update(len(names))

  def settle(self) -> None:
    """Reads the last call's results.

    Raises:
      RunError: a loss or a gradient is not finite.
    """
    if self._pending is None:
      return
    (last, logs, names), self._pending = self._pending, None
    logs = {name: np.asarray(values) for name, values in logs.items()}
    for i, shown in enumerate(names):
      step = last - len(names) + 1 + i
      self._settle(step, {name: float(values[i]) for name, values in logs.items()}, shown)

  def _settle(self, step: int, logs: dict, names: list[str]) -> None:
    # A gradient that is not finite has spoilt the state although the loss was still good.
    for name in ('loss', 'gradient_norm'):
      if not math.isfinite(value := logs[name]):
        raise RunError(
          f'the {name} of step {step} is {value}; the checkpoints before it are good. Lower '
          'optimizer.learning_rate (with another --workdir), or look at the pictures of that step: '
          f'{", ".join(names)}'
        )
    if step % self._log_every == 0 or step == self._num_steps:
      seconds = time.perf_counter() - self._since
      speed = self._steps * self._batch_size / seconds
      waiting = self._waited / seconds
      self.write(step, 'train', logs | {'images_per_second': speed, 'data_wait_fraction': waiting})
      self._bar.set_postfix_str(
        f'loss {logs["loss"]:.3f}, {speed:.1f} images/s, {waiting:.0%} waiting for data',
        refresh=False,
      )
      self._restart_clock()

  def write(self, step: int, split: str, values: dict) -> None:
    """One line of `metrics.jsonl`, and TensorBoard's scalars; what is no number is left out.

    Numbers one level below, such as those of a scene's further parts, are named `part/name`.
    """
    below = {
      f'{part}/{name}': value
      for part, nested in values.items()
      if isinstance(nested, dict)
      for name, value in nested.items()
    }
    values = {name: v for name, v in (values | below).items() if isinstance(v, int | float)}
    self._file.write(json.dumps({'step': step, 'split': split} | values) + '\n')
    for name, value in values.items():
      self._events.add_scalar(f'{split}/{name}', value, step)

  def evaluated(
    self, step: int, split: str, result: dict, watched: str, sheet: np.ndarray | None
  ) -> None:
    """Measures and pictures of `split` after `step`; its time is not counted as training."""
    self.write(step, split, result)
    if sheet is not None:
      self._events.add_image(split, sheet, step, dataformats='HWC')
    score = result[watched]
    shown = '-' if score is None else f'{score:.4f}'
    self._bar.write(f'step {step}: {split} {watched} {shown}')
    self._restart_clock()

  def _restart_clock(self) -> None:
    self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0
