"""The report for the terminal."""

import textwrap
from pathlib import Path

from seg_jax.data.datasets.base import DatasetInfo
from seg_jax.inspection.examine import WEIGHTINGS

RAW_VALUES = 24  # printed of those in the mask files; the JSON file has all of them
PRINTED = 5  # lines of one kind; the JSON file has all of them
WIDTH = 100


def about(info: DatasetInfo) -> str:
  """The dataset itself: its size, where to get it, and under what licence."""
  home = f'; {info.home}' if info.home else ''
  return f'{info.name}: {info.num_classes} classes{home}'


def of(report: dict, path: Path) -> str:
  """A split's report; `path` is the JSON file that has all of it."""
  sizes = [f'{size} ({count:,})' for size, count in report['sizes'].items()]
  more = f' and {len(sizes) - 4} more sizes' if len(sizes) > 4 else ''
  official = report['official_images']
  lines = [
    f'\n{report["dataset"]}, {report["split"]}: {report["num_images"]:,} images'
    f'{f" (officially {official:,})" if official else ""}; {path.with_suffix(".png")}',
    *([f'rows x columns: {", ".join(sizes[:4])}{more}', *_classes(report)] if sizes else []),
    *_raw_values(report),
    *_objects(report),
    *_depth(report),
  ]
  for kind, remarks in report['suspicious'].items():
    lines.append(f'{kind.replace("_", " ")} ({len(remarks)}):')
    lines += [f'  {remark}' for remark in remarks[:PRINTED]]
    if len(remarks) > PRINTED:
      lines.append(f'  and {len(remarks) - PRINTED} more in {path}')
  return '\n'.join(lines if report['suspicious'] else [*lines, 'nothing suspicious'])


def _table(titles: tuple[str, ...], rows: dict[str, tuple[str, ...]]) -> list[str]:
  """Rows by name under the titles, numbers to the right."""
  name_width = max(map(len, rows))
  widths = [max(map(len, column)) for column in zip(titles, *rows.values(), strict=True)]
  return [
    '  '.join([name.ljust(name_width), *map(str.rjust, cells, widths)]).rstrip()
    for name, cells in {'': titles, **rows}.items()
  ]


def _classes(report: dict) -> list[str]:
  """A row for each class that occurs, and one line with the others."""
  rows = {name: row for name, row in report['classes'].items() if row['pixels']}
  unseen = [name for name in report['classes'] if name not in rows]
  cells = {}
  for name, row in (*rows.items(), ('ignored', report['ignored'])):
    weights = (f'{row[weighting]:.3f}' if weighting in row else '' for weighting in WEIGHTINGS)
    cells[name] = (f'{row["pixels"]:,}', f'{row["share"]:.2%}', f'{row["images"]:,}', *weights)
  table = _table(('pixels', 'share', 'images', *WEIGHTINGS), cells)
  if not unseen:
    return table
  total = len(report['classes'])
  return [*table, *_wrapped(f'{len(unseen)} of {total} classes never occur:', unseen)]


def _raw_values(report: dict) -> list[str]:
  raw, meanings = report['raw_values'], report['raw_meanings']
  if not raw:
    return []
  total = sum(raw.values())
  texts = [
    f'{value} -> {meanings.get(value, "unknown")} ({count / total:.2%})'
    for value, count in list(raw.items())[:RAW_VALUES]
  ]
  if len(raw) > RAW_VALUES:
    texts.append(f'and {len(raw) - RAW_VALUES} more')
  return _wrapped('values in the mask files:', texts)


def _objects(report: dict) -> list[str]:
  if 'objects' not in report:
    return []
  if not report['objects']:
    return ['no objects']
  titles = ('objects', 'crowds', 'images', 'smallest', 'median')
  cells = {
    name: tuple(f'{row[title]:,.0f}' for title in titles) for name, row in report['objects'].items()
  }
  return [*_table(titles, cells), f'at most {report["most_objects"]:,} objects in one picture']


def _depth(report: dict) -> list[str]:
  if 'depth' not in report:
    return []
  depth = report['depth']
  if depth['mean'] is None:
    return ['depth: none is known']
  return [
    f'depth: {depth["lowest"]:.3g} to {depth["highest"]:.3g} m, mean {depth["mean"]:.3g} m,'
    f' {depth["unknown"]:.2%} of the pixels unknown'
  ]


def _wrapped(title: str, items: list[str]) -> list[str]:
  """The items after the title, in lines that end between two of them."""
  words = [item.replace(' ', '\0') for item in items]  # which keeps an item together
  lines = textwrap.wrap(
    f'{title} {", ".join(words)}',
    WIDTH,
    subsequent_indent='  ',
    break_long_words=False,
    break_on_hyphens=False,
  )
  return [line.replace('\0', ' ') for line in lines]
