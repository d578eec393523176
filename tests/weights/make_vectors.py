"""Writes `vectors.npz`: logits of PyTorch's models, for where it is not installed.

python -m tests.weights.make_vectors
"""

import numpy as np

from tests.weights import reference
from tests.weights.parity_test import QUICK, SLOW, THOROUGH


def main():
  vectors = {}
  for name in (*QUICK, *SLOW, *THOROUGH):
    case = reference.CASES[name]
    model = reference.filled(case)
    for mode in ('eval', 'train'):  # in this order: training moves the statistics
      for i, logits in enumerate(reference.their_logits(case, model, mode == 'train')):
        vectors[f'{name}/{mode}/{i}'] = reference.sampled(logits)
  np.savez_compressed(reference.VECTORS, **vectors)


if __name__ == '__main__':
  main()
