"""Line: a record as bytes, and back."""

import math
from typing import Any
from zlib import crc32

import msgspec

from asynctune.errors import InvalidArgument
from asynctune.records import (
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Lost,
    Record,
    Reopened,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
)

__all__ = ["MAX_LINE", "VERSION", "decode", "encode", "is_intact"]

VERSION = 1  # of the format, as Header.version has it
MAX_LINE = 2**26  # bytes; what a reader holds in memory, whatever the file holds

_END = len(b',"c":"9f3a12bc"}\n')

AnyRecord = (
    Header | Reopened | Suggested | Started | Reported | Saved | Decided | Left | Lost | Failed | Finished | Stopping
)


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python number that it holds; nothing else is foreign to JSON and yet welcome."""
    if hasattr(value, "dtype") and value.ndim == 0:
        return value.item()
    raise InvalidArgument(f"a configuration must hold numbers, strings, booleans, None, lists and dicts, got {value!r}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(
    AnyRecord,
    strict=False,  # "nan" is a float where a float is due
)


def _tagged(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {"$float": str(float(value))}
        case dict():
            return {key: _tagged(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_tagged(inner) for inner in value]
    return value


def _untagged(value: Any) -> Any:
    match value:
        case {"$float": str(text)}:
            return float(text)
        case dict():
            return {key: _untagged(inner) for key, inner in value.items()}
        case list():
            return [_untagged(inner) for inner in value]
    return value


def encode(record: Record, number: int) -> bytes:
    """A record as the line of that number (the `Header`'s is 0).

    Raises:
        InvalidArgument: it holds what JSON cannot hold, or takes more than `MAX_LINE` bytes.
    """
    try:
        body = _encode(record)
        # "null" is how msgspec writes NaN and infinities, among other things. Not `in` and `match`, which take as long as the encoding.
        if body.find(b"null") >= 0:
            if type(record) is Reported:
                spelled: Any = {
                    name: value if math.isfinite(value) else str(float(value)) for name, value in record.metrics.items()
                }
                body = _encode(msgspec.structs.replace(record, metrics=spelled))
            elif (type(record) is Suggested or type(record) is Started) and record.config is not None:
                body = _encode(msgspec.structs.replace(record, config=_tagged(record.config)))
    except InvalidArgument:
        raise
    except (ValueError, RecursionError) as error:  # lone surrogates; a list that holds itself
        raise InvalidArgument(f"a record must be what JSON can hold: {error}") from None
    begun = b'{"n":%d,' % number + body[1:-1]
    if len(begun) > MAX_LINE - _END:
        raise InvalidArgument(f"a record must take at most {MAX_LINE} bytes in the journal, got {len(begun) + _END}")
    return b'%b,"c":"%08x"}\n' % (begun, crc32(begun))


def decode(line: bytes) -> Record:
    """The record of a line, whose number and CRC are not looked at.

    Raises `ValueError` (`msgspec.DecodeError` is one) or `RecursionError` for anything else.
    """
    record = _decoder.decode(line)
    # Not `isinstance` and `in`, as above.
    if (type(record) is Suggested or type(record) is Started) and line.find(b'"$float"') >= 0:
        record = msgspec.structs.replace(record, config=_untagged(record.config))
    return record


def is_intact(line: bytes) -> bool:
    """Whether a line is what was once written, as its CRC has it."""
    return line[-_END:] == b',"c":"%08x"}\n' % crc32(line[:-_END])
