"""The kernel that runs in the box: a stock ipykernel that loses no output and floods nobody.

`python app.py -f connection.json`. All of this runs beside the agent's code and can be undone by it: every cap here spares
work, the host's caps are the rule. Imports nothing of ours, so that the file can be mounted into any image.
"""

from __future__ import annotations

import collections
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import zmq
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from IPython.core.autocall import IPyAutocall

NAME = "dojo_kernel_app"
"""Under which this file is found again when it runs as a script: traitlets resolve the stream class by name."""

CELL_CAP = 2_000_000
"""Characters of one cell and stream that go over the wire before only the tail is kept."""
TAIL = 200_000
BLACK_BOX_CAP = 16 << 20
"""Bytes of one kernel's life that the black box holds."""
CELLS_KEPT = 16


class BlackBox:
    r"""A file beside the connection file with everything printed; it survives SIGKILL and a segfault, which zmq does not.

    The text of one cell and stream follows a line `\0<msg_id>:<stream>\0`.
    """

    def __init__(self, path: str) -> None:
        self._written = 0
        self._last: tuple[str, str] | None = None
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = -1

    def write(self, cell: str, stream: str, text: str) -> None:
        """Never fails: a full disk must not break the agent's print."""
        if self._fd < 0 or self._written >= BLACK_BOX_CAP:
            return
        data = text[:BLACK_BOX_CAP].encode("utf-8", "replace")
        if self._last != (cell, stream):
            self._last = (cell, stream)
            data = f"\0{cell}:{stream}\0".encode() + data
        try:
            self._written += os.write(self._fd, data[: BLACK_BOX_CAP - self._written])
        except OSError:
            self._fd = -1


class CellText:
    """What one cell has printed to one stream: how much went out, how much was cut, and the tail of what was cut."""

    def __init__(self) -> None:
        self.sent = 0
        self.cut = 0
        self.over = False
        self._tail: collections.deque[str] = collections.deque()
        self._tail_chars = 0

    def keep(self, text: str) -> None:
        """Count `text` as cut and remember the end of it."""
        self.cut += len(text)
        self._tail.append(text[-TAIL:])
        self._tail_chars += len(self._tail[-1])
        while self._tail_chars - len(self._tail[0]) >= TAIL:
            self._tail_chars -= len(self._tail.popleft())

    def tail(self) -> str:
        """The last `TAIL` characters that were cut; forgets them."""
        text = "".join(self._tail)[-TAIL:]
        self._tail.clear()
        self._tail_chars = 0
        return text


class TeeOutStream(OutStream):
    """Black box first, wire second, the wire capped per cell with head and tail kept."""

    black_box: BlackBox | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cells: collections.OrderedDict[str, CellText] = collections.OrderedDict()
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython

    def _cell(self, cell: str) -> CellText:
        found = self._cells.get(cell)
        if found is None:
            found = self._cells[cell] = CellText()
            while len(self._cells) > CELLS_KEPT:
                self._cells.popitem(last=False)
        return found

    def write(self, string: str) -> int:
        """As `OutStream.write`; returns the number of characters given."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        parent = str((self.parent_header or {}).get("msg_id", ""))
        if self.black_box is not None:
            self.black_box.write(parent, self.name, string)
        cell = self._cell(parent)
        room = max(CELL_CAP - cell.sent, 0)
        if room:
            super().write(string[:room])
            cell.sent += min(len(string), room)
        if len(string) > room:
            if cell.over and not cell.cut:
                super().write("\n[... output after the end of the cell is cut here ...]\n")
            cell.keep(string[room:])
        return len(string)

    def end_cell(self, parent: str) -> int:
        """Send the tail of what was cut; returns how many characters the reader does not get."""
        cell = self._cells.get(parent)
        if cell is None:
            return 0
        cell.over = True
        tail = cell.tail()
        lost = cell.cut - len(tail)
        cell.cut = 0
        if tail:
            super().write(f"\n[... {lost} characters cut ...]\n{tail}" if lost else tail)
        return lost


class Hint(IPyAutocall):
    """What `exit` and `quit` are here: the kernel belongs to the episode, not to the cell."""

    rewrite = False

    def __call__(self, *_: object) -> None:
        """Raise, and say what to do instead."""
        raise RuntimeError("exit() and quit() do not end this kernel; a cell ends by itself, `reset` starts an empty kernel")


class DojoKernel(IPythonKernel):
    """Says with each reply how many characters of the cell's output were cut at the source."""

    _execute_sleep = 0

    def finish_metadata(self, parent: Any, metadata: Any, reply_content: Any) -> Any:
        """Called after each cell, before its reply."""
        cell = str(parent.get("header", {}).get("msg_id", ""))
        cut = sum(stream.end_cell(cell) for stream in (sys.stdout, sys.stderr) if isinstance(stream, TeeOutStream))
        if cut:
            metadata["dojo_cut"] = cut
        return super().finish_metadata(parent, metadata, reply_content)  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython


class DojoKernelApp(IPKernelApp):
    """IPKernelApp with lossless iopub and a quiet, colourless shell that never waits for a person."""

    def _bind_socket(self, s: Any, port: int) -> int:
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.XPUB_NODROP, 1)  # before bind; back-pressure instead of silent loss at the high-water mark
        bound: int = super()._bind_socket(s, port)  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython
        return bound

    def init_io(self) -> None:
        """Open the black box before the streams exist."""
        TeeOutStream.black_box = BlackBox(str(Path(self.abs_connection_file).with_name("output.log")))
        super().init_io()  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython

    def initialize(self, argv: Any = None) -> None:
        """Settings that have no trait."""
        super().initialize(argv)  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython
        for name in ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"):
            os.environ.pop(name, None)
        shell: Any = self.shell
        shell.system = shell.system_raw  # `!cat` through a pty would wait for a person for ever
        shell.user_ns["exit"] = shell.user_ns["quit"] = hint = Hint(shell)  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython
        shell.user_ns_hidden.update(exit=hint, quit=hint)


def main() -> None:
    """Run the kernel of the connection file named on the command line."""
    here = Path(__file__).resolve().parent
    sys.path[:] = ["", *(entry for entry in sys.path if entry and Path(entry).resolve() != here)]
    sys.modules.setdefault(NAME, sys.modules[__name__])
    os.environ.update(NO_COLOR="1", TERM="dumb", PYDEVD_DISABLE_FILE_VALIDATION="1", JPY_PARENT_PID="1")
    if os.environ.get("MPLBACKEND", "agg").lower() == "agg":
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # shows figures as image/png
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
    app = DojoKernelApp.instance(kernel_class=DojoKernel, outstream_class=f"{NAME}.TeeOutStream")
    app.config.HistoryManager.enabled = False
    app.config.InteractiveShell.cache_size = 0
    app.config.InteractiveShell.colors = "nocolor"
    app.config.InteractiveShell.banner1 = ""
    app.initialize()
    app.start()  # type: ignore[no-untyped-call]  # no types in ipykernel and IPython


if __name__ == "__main__":
    main()
