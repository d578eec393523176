"""What both sides of `experiments.benchmark` share: the batch, and how they are asked.

Each is a process that does one thing at a time, told so by a line of JSON through its pipe. In one
process two libraries would share the memory, and threads of one, which wait by spinning, would take
the cores of the other; in two, measured in turns, only one is at work at any time, they pay the
same for being asked, and one that runs out of memory takes nobody with it.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax import IGNORE

LONGEST = 300  # characters of an error that are passed on
PATIENCE = 300  # seconds that an answer may take, compilation included


class WorkerError(Exception):
  """What was asked for has failed or takes too long, or the process has ended."""


class Worker:
  """A process that runs `python ARGUMENTS...`, which ends in `serve`; a context that ends it."""

  def __init__(self, *arguments: str, **environment: str):
    self._process = subprocess.Popen(
      [sys.executable, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=Path(__file__).parents[1],
      env=os.environ | environment,
    )

  def __call__(self, name: str, **arguments) -> Any:
    """What the method `name` returns there.

    Raises:
      WorkerError: it has raised, or the process has ended, or is ended as it takes too long.
    """
    try:
      self._process.stdin.write(json.dumps([name, arguments]) + '\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # there is nothing to read, then
    if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
      self._process.kill()
      raise WorkerError(f'not done in {PATIENCE} s')
    answer = self._process.stdout.readline()
    if not answer:
      code = self._process.wait()
      how = f'was ended by signal {-code}' if code < 0 else f'ended with exit code {code}'
      raise WorkerError(f'its process {how}')
    answer = json.loads(answer)
    if 'error' in answer:
      raise WorkerError(answer['error'])
    return answer['result']

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *_) -> None:
    self._process.kill()  # it has nothing to save
    self._process.communicate()


def batch(shape: tuple[int, int, int], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Noise: pictures uint8 [N, H, W, 3] and labels int32 [N, H, W], whose first row is ignored."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (*shape, 3), np.uint8)
  labels = rng.integers(0, num_classes, shape, np.int32)
  labels[:, 0] = IGNORE
  return images, labels


def serve(begin: Callable[[], Any]) -> None:
  """Answers with what the methods of `begin()` return, until nobody asks any more."""
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
  with contextlib.suppress(OSError):  # if memory runs out, let it end this process and no other
    Path('/proc/self/oom_score_adj').write_text('500')
  side = begin()
  for line in sys.stdin:
    name, arguments = json.loads(line)
    try:
      answer = {'result': getattr(side, name)(**arguments)}
    except Exception as error:
      message = ' '.join(f'{type(error).__name__}: {error}'.split())
      answer = {'error': message[:LONGEST]}
    print(json.dumps(answer), file=answers, flush=True)
