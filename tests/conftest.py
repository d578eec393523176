"""Strict arithmetic and quick compilation, for every test and the processes that it starts."""

import os
from pathlib import Path

_home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_home / 'seg_jax' / 'tests'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
# Compiling is most of the suite's time, and a third of it goes into machine code for tiny arrays.
os.environ['XLA_FLAGS'] = f'--xla_backend_optimization_level=0 {os.environ.get("XLA_FLAGS", "")}'

import jax  # noqa: E402 (it reads the environment once)

import seg_jax  # noqa: E402, F401 (it sets XLA_FLAGS)

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
