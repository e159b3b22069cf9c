"""A process that plays attempts: `python -m pipeline.demonstrate.worker`, started by `collect`, not by hand.

Orders come as JSON lines on standard input; each answer is one JSON line on standard output. The process ends when
its input closes, so none outlives the run that started it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from pipeline.data.demos import write_episodes
from pipeline.demonstrate.play import least_score, play
from pipeline.files import write_json
from pipeline.tasks.spec import parse_spec


def main() -> None:
    """Play what is ordered until the input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "w")
    logging.getLogger("absl").setLevel(logging.ERROR)  # dm_control warns of every planned sequence that diverges
    os.dup2(2, 1)  # whatever a simulator prints must not pass for an answer
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    while True:
        try:
            answer = obey(json.loads(orders.get()))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Play one attempt, store it if it is good enough, then note its outcome: the note is what makes it count.

    Returns:
        The note: `task`, `attempt`, `seed`, `score`, `kept`, and the core-`seconds` it took.
    """
    spec, attempt, folder = parse_spec(order["spec"], "an order"), order["attempt"], Path(order["folder"])
    started = time.process_time()
    episode = play(spec, order["seed"], attempt, order["action_noise"])
    kept = episode.score >= least_score(spec)
    if kept:
        write_episodes(folder / f"{attempt:06d}.parquet", [episode])
    note = {
        "task": spec.name,
        "attempt": attempt,
        "seed": episode.seed,
        "score": episode.score,
        "kept": kept,
        "seconds": round(time.process_time() - started, 3),
    }
    write_json(folder / f"{attempt:06d}.json", note)
    return note


def _listen(orders: queue.SimpleQueue[str]) -> None:
    # A thread, so that the end of the input, which is the parent's end, is noticed in the middle of an attempt too.
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
