import gc
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest

from seg_jax.data.datasets import open_dataset
from seg_jax.tasks import build_task
from seg_jax.training import evaluation, loop
from seg_jax.training.logs import Recorder
from seg_jax.training.mesh import make_mesh
from tests.training import tiny

TOOK = Recorder.took


def resident_mib() -> float:
  """What this process holds in memory now, without what only waits to be collected."""
  gc.collect()
  pages = int(Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@pytest.mark.slow
class EnduranceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.numpy_dtype_promotion('standard'))  # optax's schedules need it
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_two_thousand_steps_take_no_more_time_and_memory_towards_the_end(self):
    times, memory = [], []

    def took(recorder, *arguments):
      TOOK(recorder, *arguments)
      times.append(time.process_time())  # what else runs here takes none of it
      if len(times) in (500, 2000):
        memory.append(resident_mib())

    seldom = {f'train__{name}': 2000 for name in ('num_steps', 'eval_every', 'checkpoint_every')}
    with mock.patch.object(Recorder, 'took', took):
      loop.train(tiny.config(**seldom, train__log_every=100), self.folder)
    self.assertLen(times, 2000)
    steps = np.diff(times)
    early, late = (statistics.median(part) for part in (steps[100:600], steps[-500:]))
    self.assertLess(late, 1.5 * early)
    self.assertLess(memory[1] - memory[0], 10)

  def test_evaluation_needs_no_more_memory_for_more_pictures(self):
    config = tiny.config(data__cache_gib=0.0)
    source = open_dataset(config.data, 'val', config.seed)
    task = build_task(config, source.info)
    variables = jax.jit(task.init)(jax.random.key(0), {'image': source[0]['image'][None]})
    judge = evaluation.Evaluator(task, source, config, 'val', make_mesh())
    memory = []
    for _ in range(18):
      judge(0, variables, self.folder)
      memory.append(resident_mib())
    self.assertLess(memory[-1] - memory[7], 10)  # 2000 pictures later


if __name__ == '__main__':
  absltest.main()
