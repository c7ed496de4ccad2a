"""Tape: the records of a run in memory, as a journal has them on disk."""

from array import array
from collections.abc import Iterable, Iterator

import msgspec

from asynctune.journal import AnyRecord
from asynctune.records import Record

__all__ = ["Tape"]

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyRecord] = msgspec.msgpack.Decoder(AnyRecord)


class Tape:
    """Records one behind the other, encoded: some 80 bytes each, where the objects would take 400. A record's place is its number."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._starts = array("q", [0])  # by record its first byte, then where the next one will begin

    def __str__(self) -> str:
        return "memory"

    def take(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        """Add records, each when its turn comes. Yields each with its place."""
        data, starts, encode = self._data, self._starts, _encoder.encode_into
        for place, record in enumerate(records, len(starts) - 1):
            encode(record, data, -1)  # behind what is there
            starts.append(len(data))
            yield place, record

    def scan(self) -> Iterator[tuple[int, Record]]:
        """All records, each with its place."""
        places = range(len(self._starts) - 1)
        return zip(places, self.at(places), strict=True)

    def at(self, places: Iterable[int]) -> Iterator[Record]:
        """The records at these places."""
        for place in places:
            yield _decoder.decode(self._data[self._starts[place] : self._starts[place + 1]])
