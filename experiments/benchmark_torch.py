"""PyTorch's side of `experiments.benchmark`, in a process of its own."""

import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from experiments import benchmark_sides as sides
from experiments import torch_models
from seg_jax import IGNORE


class Side:
  """A counterpart with its batch, and what is timed of it.

  As a user of PyTorch would for speed: maps channels-last, AdamW fused, and on a GPU bfloat16 by
  autocast with cuDNN's own search; `compiled` takes torch.compile for the model with its loss.
  """

  def build(self, spec: dict, compiled: bool) -> dict:
    """The net of `spec`, of which `experiments.benchmark.specification` tells."""
    if spec['device'] == 'cuda' and not torch.cuda.is_available():
      raise RuntimeError('this PyTorch knows no GPU')
    torch.set_num_threads(spec['cores'])
    torch.backends.cudnn.benchmark = True
    self._device, self._auxiliary = spec['device'], spec['auxiliary']
    self._before = _status('VmRSS')
    torch.manual_seed(0)
    with torch.device(self._device):
      self.model = torch_models.NETS[spec['system']](spec['model'], spec['classes'])
      self._mean, self._std = (
        torch.tensor(spec[key]).reshape(1, 3, 1, 1) for key in ('mean', 'std')
      )
    self.model.to(memory_format=torch.channels_last)
    parameters = list(self.model.parameters())
    self._optimizer = torch.optim.AdamW(
      [
        {'params': [p for p in parameters if p.ndim > 1], 'weight_decay': spec['weight_decay']},
        {'params': [p for p in parameters if p.ndim == 1], 'weight_decay': 0.0},
      ],
      lr=spec['learning_rate'],
      fused=True,
    )
    images, labels = sides.batch(spec['shape'], spec['classes'])
    self._images = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)  # channels-last
    self._labels = torch.from_numpy(labels.astype(np.int64)).to(self._device)
    self._functions = {'forward': self._logits, 'train': self._loss}
    if compiled:
      self._functions = {name: torch.compile(f) for name, f in self._functions.items()}
    return {'parameters': sum(p.numel() for p in parameters)}

  def first(self, what: str) -> dict:
    """Makes 'forward' or 'train' ready: `seconds` of its first call, and `memory` of a later one.

    That is the allocator's peak in bytes, parameters and batch included; on a CPU, of which PyTorch
    keeps no count, what the process has grown by at its largest, None where that is not known.
    """
    self.model.train(what == 'train')
    start = time.perf_counter()
    self.call(what)
    seconds = time.perf_counter() - start
    if self._device == 'cuda':
      torch.cuda.reset_peak_memory_stats()
      self.call(what)
      return {'seconds': seconds, 'memory': torch.cuda.max_memory_allocated()}
    known = self._before and _forget_peak()
    self.call(what)
    return {'seconds': seconds, 'memory': _status('VmHWM') - self._before if known else None}

  def call(self, what: str) -> float | None:
    """Does it once, to the end, and returns the loss, where there is one."""
    result = self._train() if what == 'train' else self._forward()
    if self._device == 'cuda':
      torch.cuda.synchronize()
    return result

  def _forward(self):
    with torch.no_grad():
      self._functions['forward'](self._images)

  def _train(self):
    loss = self._functions['train'](self._images, self._labels)
    loss.backward()
    self._optimizer.step()
    self._optimizer.zero_grad()
    return loss.item()

  def _logits(self, images):
    images = (images.float() / 255 - self._mean) / self._std
    with torch.autocast(self._device, torch.bfloat16, enabled=self._device == 'cuda'):
      return self.model(images)

  def _loss(self, images, labels):
    main, *auxiliary = (
      functional.cross_entropy(logits, labels, ignore_index=IGNORE)
      for logits in self._logits(images)
    )
    return main + self._auxiliary * sum(auxiliary)


def _status(field: str) -> int | None:
  """Bytes of this process, as Linux counts them: VmRSS now, VmHWM at most."""
  path = Path('/proc/self/status')
  for line in path.read_text().splitlines() if path.exists() else ():
    if line.startswith(f'{field}:'):
      return 1024 * int(line.split()[1])
  return None


def _forget_peak() -> bool:
  """Lets VmHWM begin anew; False where that cannot be."""
  try:
    Path('/proc/self/clear_refs').write_text('5')
  except OSError:
    return False
  return True


if __name__ == '__main__':
  sides.serve(Side)
