"""References: who still needs which checkpoint. A checkpoint is named `trial-segment-step`.

Restart points refer to checkpoints, and so do PBT's triples and the best trial; one that nobody refers to any more is to go.
"""

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["References"]


class _Ended(msgspec.Struct, gc=False):
    """A segment that an exploit has ended."""

    row: bytes  # (d,) float64
    checkpoint: str  # its last one


class References:
    """How many refer to each checkpoint, and with which row those were trained whose trials have gone on with another."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # checkpoint -> how many refer to it, where that is more than one
        # "trial-segment" -> that segment, as long as its last checkpoint is there: somebody behind may take over from it.
        self._ended: dict[str, _Ended] = {}

    def add(self, checkpoint: str) -> None:
        """One more refers to it, besides the first."""
        self._counts[checkpoint] = self._counts.get(checkpoint, 1) + 1

    def drop(self, checkpoint: str) -> bool:
        """One less refers to it. Return whether nobody does any more."""
        references = self._counts.pop(checkpoint, 1) - 1
        if references > 1:
            self._counts[checkpoint] = references
        if references:
            return False
        segment = _segment_of(checkpoint)
        if segment in self._ended and self._ended[segment].checkpoint == checkpoint:
            del self._ended[segment]
        return True

    def end_segment(self, trial: int, segment: int, row: npt.NDArray[np.float64], checkpoint: str) -> None:
        """A trial takes over from another; up to `checkpoint`, its last so far, it was trained with `row` (d,)."""
        self._ended[f"{trial}-{segment}"] = _Ended(row.tobytes(), checkpoint)

    def trained_with(self, checkpoint: str) -> npt.NDArray[np.float64] | None:
        """The row (d,) that a checkpoint of an ended segment was trained with; None: its trial still has that row."""
        ended = self._ended.get(_segment_of(checkpoint))
        return None if ended is None else np.frombuffer(ended.row)


def _segment_of(checkpoint: str) -> str:
    """Of "trial-segment-step" the "trial-segment"."""
    return checkpoint.rpartition("-")[0]
