import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from absl.testing import absltest

from seg_jax.training.logs import read_metrics
from tests.training.loop_test import compare, outcome

SCRIPT = """
import sys
from pathlib import Path
from tests.training import tiny
from seg_jax.training import loop
config = tiny.config(
  train__num_steps=400, train__checkpoint_every=20, train__eval_every=200, data__num_threads=1
)
loop.train(config, Path(sys.argv[1]))
"""


def start(workdir):
  with open(f'{workdir}.log', 'w') as log:
    return subprocess.Popen(
      [sys.executable, '-c', SCRIPT, workdir],
      cwd=Path(__file__).parents[2],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stdout=log,
      stderr=log,
    )


def log_of(workdir):
  return Path(f'{workdir}.log').read_text()


def logged_step(workdir):
  return max((line['step'] for line in read_metrics(workdir)), default=0)


@pytest.mark.slow
class KillTest(absltest.TestCase):
  def test_killed_three_times_is_the_uninterrupted_run_bit_for_bit(self):
    rng = random.Random()
    with tempfile.TemporaryDirectory() as folder:
      whole, killed = Path(folder) / 'whole', Path(folder) / 'killed'
      self.assertEqual(start(whole).wait(timeout=300), 0, log_of(whole))
      kills = sorted(rng.sample(range(5, 380), 3))
      for step in kills:
        process = start(killed)
        while logged_step(killed) < step and process.poll() is None:
          time.sleep(0.002)
        process.kill()
        self.assertEqual(process.wait(timeout=60), -9, f'{kills}: {log_of(killed)}')
      self.assertEqual(start(killed).wait(timeout=300), 0, log_of(killed))
      compare(self, outcome(whole), outcome(killed))


if __name__ == '__main__':
  absltest.main()
