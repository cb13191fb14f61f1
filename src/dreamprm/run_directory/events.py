"""TensorBoard's event file, written in this thread: what the disk refuses is raised to the caller.

tensorboard's own writer has a thread, which ends with a traceback that no caller can catch.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from dreamprm.writing import UnbufferedFile

_numbers = itertools.count()  # of the files that this process has begun


class EventWriter(SummaryWriter):
    """torch's, on an :class:`EventFile`.

    Args:
        folder: of the file.
        first_step: TensorBoard forgets what older files have of this step and later ones.

    Raises:
        OSError: the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__(str(folder), purge_step=first_step)

    def _get_file_writer(self) -> EventFile:
        """What every method of torch's writer writes to."""
        if self.file_writer is None:
            self.file_writer: Any = EventFile(Path(self.log_dir), self.purge_step)
            self.all_writers: Any = {self.log_dir: self.file_writer}
        return self.file_writer


class EventFile:
    """The part of ``torch.utils.tensorboard.FileWriter`` that its methods call.

    Args:
        folder: of the file.
        first_step: see :class:`EventWriter`.

    Raises:
        OSError: the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._file = UnbufferedFile(folder / f"events.out.tfevents.{name}", "w")
        self._records = RecordWriter(self._file)
        self.add_event(Event(file_version="brain.Event:2"), first_step)
        self.add_event(Event(session_log=SessionLog(status=SessionLog.START)), first_step)

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        """Writes an event."""
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = step
        self._records.write(event.SerializeToString())

    def add_summary(
        self, summary: Any, global_step: int | None = None, walltime: float | None = None
    ) -> None:
        """Writes a summary."""
        self.add_event(Event(summary=summary), global_step, walltime)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
