"""Journal: the run on disk, and the only writer of it.

A run directory holds one append-only `journal.jsonl`: the list of the run's records, one JSON object per line, the
`Header` first. Each line begins with its number and ends with the CRC-32 of all before it:

    {"n":17,"t":"reported",...,"c":"9f3a12bc"}

JSON has no NaN and no infinities. In metrics, which hold nothing but numbers, they are written as the strings
"nan", "inf" and "-inf"; in a configuration, which may hold any string, as {"$float": "nan"} and so on. Both read
back as the floats that they were.

What a crash leaves is a torn tail: bytes at the end with no intact line behind them. Readers leave it out, and a resumed run
sets it aside before it appends. An intact line behind a bad one, or out of its turn, is damage, which no crash brings
about: it is refused, until `repair` has set aside all from there on.
"""

from asynctune.journal.line import MAX_LINE, VERSION, AnyRecord, decode, encode
from asynctune.journal.reader import Follower, read, records_at, scan
from asynctune.journal.tail import Repaired, repair
from asynctune.journal.writer import Journal, write

__all__ = [
    "MAX_LINE",
    "VERSION",
    "AnyRecord",
    "Follower",
    "Journal",
    "Repaired",
    "decode",
    "encode",
    "read",
    "records_at",
    "repair",
    "scan",
    "write",
]
