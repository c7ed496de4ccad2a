"""Resume: a study brought back to where its journal ends.

The journal's records are applied by the same code that applied them when they happened. Decisions are records, so they are taken
from the journal and not made again, whatever has changed in the code since.
"""

from collections.abc import Callable

from asynctune.errors import JournalError
from asynctune.records import Decided, Finished, Header, Record, Saved, Stopping
from asynctune.study import Release, Study

__all__ = ["Replay"]

#: What follows from other records. They happen before anything else does: a record of another kind says that they have.
_FOLLOWING = (Decided, Finished, Stopping)


class Replay:
    """The fold of a journal: `take` its records in order.

    Args:
        bind: makes the fresh study that a header is about; raises `InvalidArgument` if it is about another run.
        watcher: is shown each record once it has happened.

    Attributes:
        header: the journal's first record; None if there is none.
        study: as it was when the last record had happened.
        due: what follows from the last records and is not in the journal, in order.
        time: of the last record, in seconds since the run began.
        checkpoints: the names of those that a record needs.
    """

    study: Study

    def __init__(self, bind: Callable[[Header], Study], watcher: Callable[[Record], object] | None = None) -> None:
        self._bind = bind
        self._watcher = watcher
        self._count = 0
        self.header: Header | None = None
        self.due: list[Record] = []
        self.time = 0.0
        self.checkpoints: set[str] = set()

    def take(self, record: Record) -> None:
        """Let the next record have happened. Raises `JournalError` if it does not follow from those before."""
        self.time = record.time
        if isinstance(record, Header):
            self.study = self._bind(record)
            self.header = record
        else:
            try:
                self._apply(record)
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise JournalError(
                    f"record {self._count}, {record.kind!r}, does not follow from those before: {what}"
                ) from error
        self._count += 1
        if self._watcher is not None:
            self._watcher(record)

    def _apply(self, record: Record) -> None:
        trial = getattr(record, "trial", 0)
        if not 0 <= trial <= len(self.study):
            raise JournalError(f"there are {len(self.study)} trials, got trial {trial}")
        if isinstance(record, _FOLLOWING):
            known = (type(record), trial)
            for index, due in enumerate(self.due):
                if (type(due), getattr(due, "trial", 0)) == known:
                    del self.due[index]
                    break
        else:
            self.due.clear()
        if isinstance(record, Saved) and record.checkpoint is not None:
            self.checkpoints.add(record.checkpoint)
        for effect in self.study.apply(record):
            if isinstance(effect, Release):
                self.checkpoints.discard(effect.checkpoint)
            elif isinstance(effect, _FOLLOWING):
                self.due.append(effect)
