"""What ends a run with one line instead of a traceback."""

import difflib


class _OneLineError(Exception):
  def __init__(self, message: str):
    super().__init__(' '.join(message.split()))


class UserError(_OneLineError):
  """Something that the user gave is wrong: config, data, checkpoint. `main.py` exits with 2.

  The message names the file, key or value and says what was expected.
  """


class RunError(_OneLineError):
  """The run cannot go on, and what it was given need not be wrong; `main.py` exits with 1.

  A loss that is not finite, a disk that is full.
  """


def nearest(name: str, known) -> str:
  """A hint for a mistyped `name`: `; did you mean 'x'?`, or the list of what is known."""
  known = sorted(map(str, known))
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f"; did you mean '{close[0]}'?" if close else f'; expected one of {", ".join(known)}'
