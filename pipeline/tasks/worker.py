"""A process that steps some environments of a vector: `python -m pipeline.tasks.worker SOCKET MEMORY`.

Started by `VectorEnv`, not by hand. A plain new interpreter rather than multiprocessing: that would import the
parent's main module again, and torch with it. Commands and answers are short messages on a socket; observations,
actions and the rest lie in shared memory.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

import numpy as np

from pipeline.tasks.env_group import EnvGroup, Widths, view
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import parse_spec

RESET, STEP, RESTORE, DONE = b"reset", b"step", b"restore", b"done"


def main() -> None:
    """Build the environments, then obey until the parent closes the socket or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()
    connection = Connection(int(sys.argv[1]))
    try:
        group = _build(json.loads(connection.recv_bytes()), int(sys.argv[2]))
        connection.send_bytes(DONE)
        while True:
            _obey(group, connection)
            connection.send_bytes(json.dumps({"failures": group.failures}).encode() if group.failures else DONE)
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", []))
        answer = {"error": f"{type(error).__name__}: {error}{notes}", "traceback": traceback.format_exc()}
        connection.send_bytes(json.dumps(answer).encode())


def _build(order: dict, memory: int) -> EnvGroup:
    arrays = view(mmap.mmap(memory, 0), Widths(*order["widths"]))
    specs = [(index, parse_spec(values, "a worker's orders")) for index, values in order["specs"]]
    labels = Labels.from_orders(order["labels"]) if order["labels"] else None
    return EnvGroup(specs, arrays, order["seed"], order["numbers"], labels, order["first_steps"])


def _obey(group: EnvGroup, connection: Connection) -> None:
    command = connection.recv_bytes()
    if command == STEP:
        group.step()
    elif command == RESET:
        group.reset()
    else:
        assert command == RESTORE, command
        record = json.loads(connection.recv_bytes())
        actions = [np.frombuffer(connection.recv_bytes(), np.float32).reshape(shape) for shape in record["shapes"]]
        group.restore(record["episodes"], actions)


def _exit_with(parent: int) -> None:
    # Not the kernel's parent-death signal: that one follows the thread that started us, which may end before the run.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
