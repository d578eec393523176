"""Semantic segmentation in JAX: every system a small pure-function model that really trains."""

import importlib.metadata
import os

IGNORE = 255  # the label of a pixel that counts nowhere

# Before 0.12, jaxlib's CPU back end fuses some small matrix products and sums wrongly, by more than
# rounding (tests/xla_fusion_test.py shows it). This keeps it to the fusions that are right.
_SAFE_FUSION = '--xla_cpu_experimental_ynn_fusion_type=individual_dot,individual_convolution'
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 12):
  _given = os.environ.get('XLA_FLAGS', '')
  if 'xla_cpu_experimental_ynn_fusion_type' not in _given:
    os.environ['XLA_FLAGS'] = f'{_given} {_SAFE_FUSION}'.strip()
