"""Strict arithmetic and the compilation cache, for every test and the processes that it starts."""

import os
from pathlib import Path

_home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_home / 'seg_jax' / 'tests'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')

import jax  # noqa: E402 (it reads the environment once)

import seg_jax  # noqa: E402, F401 (it sets XLA_FLAGS)

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
