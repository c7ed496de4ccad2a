"""Wire: frames survive any way of being cut, and nothing else passes for one."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune import _wire as wire
from asynctune.errors import ProtocolError

TO_WORKER: list[Any] = [
    wire.Load(b"\x80", ["/a", ""], "/"),
    wire.Run(
        1,
        2,
        3,
        2**63,
        b"\x80\x00",
        "lös",
        0,
        9,
        None,
        None,
        "/c",
        1.5,
        "cpu",
    ),
    wire.Continue(1, None),
    wire.Continue(1, 2**40),
    wire.Pause(1),
    wire.Save(1),
    wire.End(1),
    wire.Call(1, b""),
]
FROM_WORKER: list[Any] = [
    wire.Ready(1),
    wire.Loaded(),
    wire.Report(1, 2, {"loss": 0.1, "worst": -math.inf}),
    wire.Saved(1, 2, "0-0-2"),
    wire.NotSaved(1, "OSError: full"),
    wire.Done(1, True, False, 0.25, (0, 7)),
    wire.Error(1, "ValueError: no", "Traceback", 0.5, (3, 4)),
    wire.Returned(1, b"x" * 5000),
]


@pytest.mark.parametrize(("frames", "kind"), [(TO_WORKER, wire.ToWorker), (FROM_WORKER, wire.FromWorker)])
def test_frames_survive_a_cut_at_every_byte(frames: list[Any], kind: Any) -> None:
    small = [frame for frame in frames if len(wire.encode(frame)) < 1000]
    data = b"".join(map(wire.encode, small))
    for cut in range(len(data) + 1):
        decoder = wire.Decoder[Any](kind)
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == small


@given(st.lists(st.sampled_from(FROM_WORKER)), st.lists(st.integers(1, 3000), min_size=1))
def test_frames_survive_many_cuts(frames: list[Any], lengths: list[int]) -> None:
    data = b"".join(map(wire.encode, frames))
    decoder = wire.Decoder[Any](wire.FromWorker)
    received, at = [], 0
    while at < len(data):
        length = lengths[at % len(lengths)]
        received += decoder.feed(data[at : at + length])
        at += length
    assert received == frames


@given(st.dictionaries(st.text(), st.floats()))
def test_every_float_arrives_as_it_was(metrics: dict[str, float]) -> None:
    [frame] = wire.Decoder[Any](wire.FromWorker).feed(wire.encode(wire.Report(1, 1, metrics)))
    assert repr(frame.metrics) == repr(metrics)


def test_text_that_strays_onto_the_socket_is_refused_at_once() -> None:
    with pytest.raises(ProtocolError, match="announces"):
        wire.Decoder[Any](wire.FromWorker).feed(b"epoch 1: loss 0.3")


@pytest.mark.parametrize("garbage", [b"epoch 1: loss 0.3", b"\0\0\0\1\xc1"])
def test_frames_are_lost_that_came_before_garbage(garbage: bytes) -> None:
    decoder = wire.Decoder[Any](wire.FromWorker)
    report = wire.Report(1, 1, {"loss": 1.0})
    assert decoder.feed(wire.encode(report) + garbage) == [report]
    with pytest.raises(ProtocolError):
        decoder.feed(b"")


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\xc0", b"\x92\xa5Ready\xa1x", wire.encode(wire.End(1))[4:]])
def test_a_body_that_is_no_frame_of_the_direction_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a frame"):
        wire.Decoder[Any](wire.FromWorker).feed(len(body).to_bytes(4, "big") + body)


def test_a_frame_that_is_too_long_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_LENGTH", 1000)
    with pytest.raises(ProtocolError, match="a Call frame may have 1000 bytes"):
        wire.encode(wire.Call(1, b"x" * 1000))
