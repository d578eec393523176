"""Files that are whole or absent: a run killed while it saves leaves the old file, or none."""

import os
import uuid
from pathlib import Path


def write_bytes(path, data: bytes) -> None:
  """Writes `data` to a temporary name beside `path`, then moves it there; makes the folder."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}-{uuid.uuid4().hex}')
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
