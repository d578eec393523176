"""Video files, read and written frame by frame, so that a long one needs no more memory.

PyAV does it, which brings FFmpeg: `pip install 'seg_jax[video]'`.
"""

import contextlib
import dataclasses
import heapq
import itertools
import math
import operator
import os
import uuid
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from seg_jax.errors import UserError

SUFFIXES = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}

_TIME_BASE = Fraction(1, 90_000)  # of the frames that are written, in seconds
_BT709, _LIMITED = 1, 1  # FFmpeg's numbers for these colours, and for their range

Frames = Iterator[tuple[float, np.ndarray]]  # seconds at which it is shown, uint8 [H, W, 3] RGB


@dataclasses.dataclass(frozen=True)
class Video:
  """An open file. Its frames are decoded as they are asked for, once."""

  frames: Frames
  rate: Fraction  # frames a second, on average
  count: int | None  # of the frames, where the file tells


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Video]:
  """A file of any kind that FFmpeg knows; its frames come upright.

  Raises:
    UserError: no video, or a damaged one, also while its frames are asked for; or PyAV is missing.
  """
  with _faults(path):
    container = _library(path).open(str(path))
  with container:
    if not container.streams.video:
      raise UserError(f'{path}: has no pictures; expected a video')
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    rate = Fraction(stream.average_rate or 25)
    yield Video(_frames(path, container, stream, rate), rate, stream.frames or None)


def _frames(path, container, stream, rate):
  with _faults(path):
    number = -1
    for number, frame in enumerate(container.decode(stream)):
      upright = np.rot90(frame.to_ndarray(format='rgb24'), round(frame.rotation / 90))
      seconds = number / rate if frame.time is None else frame.time
      yield float(seconds), np.ascontiguousarray(upright)
    if number < 0:
      raise OSError('not one frame')


def write(path: Path, frames: Frames, rate: Fraction, sound_of: Path) -> None:
  """Writes an MP4, H.264, with the sound of the file `sound_of` if it has any; whole or not at all.

  Args:
    frames: one or more of the same size, each let go before the next is asked for.
    rate: frames a second, as players tell it; each frame is shown at its own time.

  Raises:
    UserError: `path` cannot be written, or `sound_of` not read; or PyAV is missing.
  """
  av = _library(path)
  first = next(frames)
  try:
    with _whole(path) as temporary, contextlib.ExitStack() as opened:
      output = opened.enter_context(av.open(str(temporary), 'w', format='mp4'))
      source = opened.enter_context(av.open(str(sound_of)))
      encoder = _picture_encoder(output, first[1], rate)
      streams = [_pictures(encoder, itertools.chain([first], frames))]
      if source.streams.audio:
        encoder = output.add_stream('aac', rate=48_000, layout='stereo')
        streams.append(_sound(encoder, source, sound_of))
      for _, packets in heapq.merge(*streams, key=operator.itemgetter(0)):  # both grow in time
        output.mux(packets)
  except (av.FFmpegError, OSError) as error:
    raise UserError(f'{path} cannot be written ({error})') from error


def _picture_encoder(output, picture, rate):
  stream = output.add_stream('libx264', rate=rate, options={'crf': '20'})
  stream.height, stream.width = picture.shape[:2]
  even = stream.height % 2 == stream.width % 2 == 0
  stream.pix_fmt = 'yuv420p' if even else 'yuv444p'  # half as many colours need even numbers
  context = stream.codec_context
  context.time_base = _TIME_BASE
  context.colorspace = context.color_primaries = context.color_trc = _BT709
  context.color_range = _LIMITED
  return stream


def _pictures(encoder, frames):
  """(seconds, packets), and at last what the encoder kept back."""
  from av import VideoFrame

  last = -1
  for seconds, picture in frames:
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')
    frame = frame.reformat(format=encoder.pix_fmt, dst_colorspace='ITU709')
    last = max(last + 1, round(seconds / _TIME_BASE))  # two at the same time are none
    frame.pts, frame.time_base = last, _TIME_BASE
    yield seconds, encoder.encode(frame)
  yield math.inf, encoder.encode(None)


def _sound(encoder, source, path):
  with _faults(path):
    for frame in source.decode(audio=0):
      yield frame.time or 0.0, encoder.encode(frame)
    yield math.inf, encoder.encode(None)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
  """A temporary name, which becomes `path` if all goes well."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _library(path: Path):
  try:
    import av
  except ImportError as error:
    raise UserError(f"{path}: needs PyAV; pip install 'seg_jax[video]'") from error
  return av


@contextlib.contextmanager
def _faults(path: Path) -> Iterator[None]:
  """Whatever a decoder raises is the file's fault."""
  try:
    yield
  except (UserError, MemoryError):
    raise
  except Exception as error:
    raise UserError(f'{path}: cannot be read ({error}); expected a video file') from error
