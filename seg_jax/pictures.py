"""Pictures for people: labels in colour, pictures side by side, sheets, figures, and their files.

Every picture is uint8 [H, W, 3] RGB. A label holds classes and 255 = ignore; ignored pixels are
drawn as grey-and-white stripes, which no palette has.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from seg_jax import IGNORE, atomic

PANEL = (256, 400)  # rows, columns that a panel of a contact sheet fits into
SHEET_WIDTH = 2200  # pixels; two examples share a row of a sheet where they fit into it
PAPER, INK, FAINT = (250, 250, 250), (34, 34, 34), (120, 120, 120)


def _stripes(rows: int, columns: int, width: int) -> np.ndarray:
  """The look of ignored pixels: diagonal stripes of white and grey, uint8 [rows, columns, 3]."""
  bright = np.add.outer(np.arange(rows), np.arange(columns)) // width % 2
  return np.where(bright[..., None], np.uint8(255), np.uint8(205)).repeat(3, axis=2)


def colourise(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Integer label [H, W] in the colours of palette uint8 [K, 3]; ignored pixels are striped.

  IndexError for a label that is neither a class of the palette nor 255.
  """
  ignored = label == IGNORE
  picture = palette[np.where(ignored, 0, label)]
  if ignored.any():
    stripes = _stripes(*label.shape, width=2 + max(label.shape) // 150)
    picture[ignored] = stripes[ignored]
  return picture


def overlay(
  image: np.ndarray, label: np.ndarray, palette: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
  """The image under `alpha` of the class colours, which are pure along the classes' boundaries.

  Ignored pixels of label [H, W] leave the image as it is.
  """
  image = viewable(image)
  label = label.astype(np.uint8)
  boundary = _boundary(label)
  colours = colourise(label, palette)
  picture = cv2.addWeighted(image, 1 - alpha, colours, alpha, 0)
  picture[boundary] = colours[boundary]
  ignored = label == IGNORE
  picture[ignored] = image[ignored]
  return picture


def _boundary(label: np.ndarray) -> np.ndarray:
  """Where the values of a label [H, W] change: bool [H, W]."""
  reach = 1 + min(label.shape) // 512  # pixels on either side of a boundary
  window = np.ones((2 * reach + 1,) * 2, np.uint8)
  return cv2.dilate(label, window) != cv2.erode(label, window)


def draw_instances(image: np.ndarray, instances: np.ndarray, alpha: float = 0.6) -> np.ndarray:
  """The image under `alpha` of a colour of its own for each object, outlined in white.

  `instances` are the numbers of objects from 1, int32 [H, W], or [H, W, L] where objects overlap.
  """
  hues = np.arange(instances.max() + 1) * 0.618 % 1  # the golden ratio: neighbours lie far apart
  colours = 255 * hsv_to_rgb(np.stack([hues, np.full_like(hues, 0.9), np.ones_like(hues)], -1))
  picture = image.copy()
  for ids in np.moveaxis(instances.reshape(*instances.shape[:2], -1), -1, 0):
    inside = ids > 0
    blended = (1 - alpha) * picture[inside] + alpha * colours[ids[inside]]
    picture[inside] = np.rint(blended).astype(np.uint8)
    picture[_boundary(ids.astype(np.float32)) & inside] = 255
  return picture


def draw_segments(
  segments: np.ndarray, colours: np.ndarray, image: np.ndarray | None = None
) -> np.ndarray:
  """Segments [H, W], numbers from 1, in `colours` uint8 [K, 3], outlined in white.

  They lie half over the image, if there is one; 0, where there is none, is left, or else striped.
  """
  known = segments > 0
  if image is None:
    picture = _stripes(*segments.shape, width=2 + max(segments.shape) // 150)
    picture[known] = colours[segments[known] - 1]
  else:
    picture = image.copy()
    picture[known] = picture[known] // 2 + colours[segments[known] - 1] // 2
  picture[_boundary(segments.astype(np.float32)) & known] = 255
  return picture


def draw_boxes(
  image: np.ndarray, boxes: np.ndarray, captions: Sequence[str], colours: np.ndarray
) -> np.ndarray:
  """The image with frames and a line of text on each, the first ones on top.

  `boxes` are y0, x0, y1, x1 in pixels, float [K, 4], and `colours` uint8 [K, 3]. Text more than
  three times as wide as its frame is left out, as it would hide the neighbours of small objects.
  """
  picture = Image.fromarray(image)
  draw = ImageDraw.Draw(picture)
  rows, columns = image.shape[:2]
  font = _font(max(10, min(rows, columns) // 32))
  line, width = sum(font.getmetrics()), 1 + min(rows, columns) // 400
  for box, caption, colour in reversed([*zip(boxes, captions, colours, strict=True)]):
    top, left, bottom, right = np.rint(box).astype(int).tolist()
    colour, dark = tuple(colour.tolist()), colour @ (0.3, 0.6, 0.1) < 140
    draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), None, colour, width)
    across = math.ceil(font.getlength(caption)) + 4
    if across > 3 * (right - left):
      continue
    x, y = max(0, min(left, columns - across)), top - line if top >= line else top
    draw.rectangle((x, y, x + across - 1, y + line - 1), colour)
    draw.text((x + 2, y), caption, 'white' if dark else 'black', font)
  return np.asarray(picture)


def colour_depth(depth: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
  """Depth float [H, W] in metres from red, near, to blue, far, by its logarithm; 0 is striped.

  The colours span the depths of `like`, if that is given and any of it is known.
  """
  known = depth > 0
  picture = _stripes(*depth.shape, width=2 + max(depth.shape) // 150)
  if known.any():
    span = depth if like is None or not (like > 0).any() else like
    # What a few wrong points tell is left out.
    low, high = np.percentile(np.log(span[span > 0]), (1, 99))
    shades = np.clip((np.log(depth[known]) - low) / max(high - low, 1e-6), 0, 1)
    picture[known] = np.rint(255 * matplotlib.colormaps['turbo_r'](shades)[:, :3])
  return picture


def viewable(image: np.ndarray) -> np.ndarray:
  """An image [H, W, C] as uint8 [H, W, 3]: RGB of 8 bits as it is, of others the first bands.

  Each of the first three, or the first alone, grey, if there are fewer, is stretched so that all
  but its darkest and its brightest hundredth can be told apart.
  """
  if image.dtype == np.uint8 and image.shape[2] == 3:
    return image
  first = image[..., : 3 if image.shape[2] >= 3 else 1].astype(np.float32)
  low, high = np.percentile(first, (1, 99), axis=(0, 1))
  stretched = np.clip((first - low) / np.maximum(high - low, 1), 0, 1)
  return np.rint(255 * np.broadcast_to(stretched, (*image.shape[:2], 3))).astype(np.uint8)


def enlarge(image: np.ndarray, *labels: np.ndarray) -> list[np.ndarray]:
  """A small image and its labels, a whole number of times larger, as a contact sheet shows them.

  Draw afterwards, so that boundaries and stripes are fine and the picture is smooth.
  """
  rows, columns = image.shape[:2]
  factor = max(1, min(PANEL[0] // rows, PANEL[1] // columns))
  size = (columns * factor, rows * factor)
  image = cv2.resize(viewable(image), size, interpolation=cv2.INTER_CUBIC)
  return [image, *(x.repeat(factor, axis=0).repeat(factor, axis=1) for x in labels)]


def _fit(panel: np.ndarray) -> np.ndarray:
  """A panel as large as fits into PANEL: enlarged a whole number of times, or shrunk smoothly."""
  rows, columns = panel.shape[:2]
  scale = min(PANEL[0] / rows, PANEL[1] / columns)
  if scale >= 1:
    return panel.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
  size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
  return cv2.resize(panel, size, interpolation=cv2.INTER_AREA)


def _font(size: int) -> ImageFont.FreeTypeFont:
  """Matplotlib's own DejaVu Sans, which knows more alphabets than Pillow's default font."""
  return ImageFont.truetype(
    str(Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'), size
  )


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
  """The end of `text`, which tells file names apart, as far as it fits into `width` pixels."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength('…' + text) > width:
    text = text[1:]
  return '…' + text


def _legend(class_names: Sequence[str], palette: np.ndarray, width: int) -> Image.Image:
  """Swatches and names of all classes and of 'ignored' in columns, `width` pixels wide."""
  font, line, swatch = _font(13), 24, (22, 14)
  names = [_shorten(name, font, 180) for name in (*class_names, 'ignored')]
  colours = [np.full((*swatch[::-1], 3), colour, np.uint8) for colour in palette]
  colours.append(_stripes(*swatch[::-1], width=3))
  column = swatch[0] + 30 + math.ceil(max(map(font.getlength, names)))
  across = min(max(1, width // column), len(names))
  down = math.ceil(len(names) / across)
  legend = Image.new('RGB', (width, down * line), PAPER)
  draw = ImageDraw.Draw(legend)
  for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
    x, y = i // down * column, i % down * line + (line - swatch[1]) // 2
    legend.paste(Image.fromarray(colour), (x, y))
    draw.rectangle((x, y, x + swatch[0] - 1, y + swatch[1] - 1), outline=FAINT)
    draw.text((x + swatch[0] + 8, y + swatch[1] / 2), name, INK, font, anchor='lm')
  return legend


def contact_sheet(
  rows: Sequence[Sequence[np.ndarray]],
  captions: Sequence[str],
  legend: tuple[Sequence[str], np.ndarray],
  headings: Sequence[str] = ('picture', 'truth', 'prediction'),
) -> np.ndarray:
  """Examples in a grid, with a heading over each column and the classes' colours at the bottom.

  Args:
    rows: each example's panels, pictures [H, W, 3] of any size, one for each heading. Panels are
      brought to a size that a person can see; `enlarge` small ones before drawing on them.
    captions: one line for each example, which stands below it.
    legend: class names and palette uint8 [K, 3].
    headings: of the panels, the same for every example.

  Returns:
    uint8 [H, W, 3]. Two examples stand beside each other where the sheet doesn't become too wide.
  """
  gap, margin, heading_height, caption_height = 6, 20, 26, 32
  rows = [[_fit(panel) for panel in panels] for panels in rows]
  heights = [max(panel.shape[0] for panel in panels) for panels in rows]
  widths = [max(panel.shape[1] for panel in column) + gap for column in zip(*rows, strict=True)]
  *lefts, example = np.cumsum([0, *widths]).tolist()
  across = 2 if len(rows) > 1 and 2 * example + 3 * margin <= SHEET_WIDTH else 1
  width = across * (example + margin) + margin
  lines = [max(heights[i : i + across]) + caption_height for i in range(0, len(rows), across)]
  tops = np.cumsum([margin + heading_height, *lines]).tolist()
  swatches = _legend(*legend, width - 2 * margin)

  sheet = Image.new('RGB', (width, tops[-1] + swatches.height + margin), PAPER)
  draw = ImageDraw.Draw(sheet)
  for i in range(across):
    for left, heading in zip(lefts, headings, strict=True):
      x = margin + i * (example + margin) + left
      draw.text((x, margin + 8), heading, INK, _font(16), anchor='lm')
  for i, (example_panels, caption) in enumerate(zip(rows, captions, strict=True)):
    x = margin + i % across * (example + margin)
    y = tops[i // across]
    for left, panel in zip(lefts, example_panels, strict=True):
      sheet.paste(Image.fromarray(panel), (x + left, y))
    draw.text((x, y + heights[i] + 5), _shorten(caption, _font(12), example), FAINT, _font(12))
  sheet.paste(swatches, (margin, tops[-1]))
  return np.asarray(sheet)


def confusion_figure(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
  """Where the pixels of each class went: confusion int [C, C] (truth, prediction) by row.

  The diagonal is the recall. A class without pixels has an empty grey row. Numbers are printed for
  up to 20 classes.
  """
  count = len(class_names)
  pixels = confusion.sum(axis=1, keepdims=True)
  share = np.where(pixels > 0, 100 * confusion / np.maximum(pixels, 1), np.nan)
  side = min(16, 3 + 0.5 * count)
  figure = Figure(figsize=(side + 1, side), dpi=120, layout='constrained')
  axes = figure.add_subplot()
  axes.set_facecolor('0.85')
  drawn = axes.imshow(share, cmap='Blues', vmin=0, vmax=100)
  figure.colorbar(drawn, ax=axes, shrink=0.8, label="% of the true class's pixels")
  fontsize = max(4.5, min(10, 60 * side / count))
  axes.set_xticks(range(count), class_names, rotation=90, fontsize=fontsize)
  axes.set_yticks(range(count), class_names, fontsize=fontsize)
  axes.set_xlabel('prediction')
  axes.set_ylabel('truth')
  if count <= 20:
    for (i, j), value in np.ndenumerate(share):
      if value >= 0.5:  # zeros would hide what is confused
        colour = 'white' if value > 60 else '0.2'
        axes.text(j, i, f'{value:.0f}', ha='center', va='center', color=colour, fontsize=9)
  return figure


def _series(lines: Sequence[dict], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of what the lines of one split tell under `name`; null is left out."""
  told = [x for x in lines if x.get('split') == split and x.get(name) is not None]
  return np.array([x['step'] for x in told]), np.array([x[name] for x in told], float)


def curve_figure(
  lines: Sequence[dict], metric: str = 'miou', smaller_is_better: bool = False
) -> Figure:
  """The course of a training run from the lines of its `metrics.jsonl`.

  Above, the training loss, faint, with its moving average, and the cross entropy of the evaluated
  splits, if they have one; below, `metric` of the evaluated splits with its best value.
  """
  figure = Figure(figsize=(8, 6), dpi=120, layout='constrained')
  losses, scores = figure.subplots(2, 1, sharex=True)
  steps, loss = _series(lines, 'train', 'loss')
  if len(loss):
    window = np.ones(1 + 2 * (len(loss) // 40))
    smooth = np.convolve(loss, window, 'same') / np.convolve(np.ones(len(loss)), window, 'same')
    losses.plot(steps, loss, color='tab:blue', alpha=0.3, linewidth=1)
    losses.plot(steps, smooth, color='tab:blue', linewidth=2.2, label='train')
  splits = dict.fromkeys(line['split'] for line in lines if line.get('split') != 'train')
  for i, split in enumerate(splits):
    style = {'color': f'C{i + 1}', 'marker': 'o', 'markersize': 4}
    told = _series(lines, split, 'cross_entropy')
    if len(told[0]):
      losses.plot(*told, linestyle=':', label=f'{split}, cross entropy', **style)
    steps, score = _series(lines, split, metric)
    if np.isfinite(score).any():
      best = (np.nanargmin if smaller_is_better else np.nanargmax)(score)
      label = f'{split}, best {score[best]:.4f} at step {steps[best]}'
      scores.plot(steps, score, label=label, **style)
  losses.set_ylabel('loss')
  scores.set_ylabel(metric)
  scores.set_xlabel('step')
  for axes in (losses, scores):
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(frameon=False)
  return figure


def _write(path, picture: Image.Image) -> None:
  buffer = io.BytesIO()
  picture.save(buffer, 'PNG')
  atomic.write_bytes(path, buffer.getvalue())


def write_png(path, picture: np.ndarray) -> None:
  """Saves uint8 [H, W, 3] (RGB), or uint8 or uint16 [H, W] (grey), whole or not at all."""
  _write(path, Image.fromarray(picture))


def write_palette_png(path, label: np.ndarray, palette: np.ndarray) -> None:
  """Saves label uint8 [H, W] as indices of a palette PNG: classes in their colours, 255 white."""
  colours = np.zeros((256, 3), np.uint8)
  colours[: len(palette)] = palette
  colours[IGNORE] = 255
  picture = Image.fromarray(label.astype(np.uint8))
  picture.putpalette(colours.tobytes())
  _write(path, picture)


def save_figure(path, figure: Figure) -> None:
  """Saves a Matplotlib figure as a PNG, whole or not at all."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  atomic.write_bytes(path, buffer.getvalue())
