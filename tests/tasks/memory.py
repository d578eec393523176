"""A source of pictures that lie in memory."""


class Memory:
  """The part that sources of records share; `names` and `_records` are theirs."""

  names: list[str]
  _records: list[dict]

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self._records[index]

  def size(self, index):
    return self._records[index]['label'].shape
