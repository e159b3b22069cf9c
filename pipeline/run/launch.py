"""How a stage becomes a process, or several: threads, seeds, the launcher, errors, and its end with its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import shlex
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import torch
import torch.distributed as dist

from pipeline import config
from pipeline.extras import needs
from pipeline.files import write_json
from pipeline.run.cores import available_cores, one_thread_by_default
from pipeline.run.ranks import PeerLost, Ranks, launched_processes
from pipeline.run.stages import where

with needs("pipeline"):
    from accelerate import Accelerator

_PR_SET_PDEATHSIG = 1
_ROLE = "eft"  # torchrun's word for a group of processes; names those that `launch` started
_PEER_LOST = 3
_SECONDS_TO_SAVE = 24 * 60 * 60  # torchrun kills after 30 s, which a large save can exceed


def start(runtime: config.Runtime, seed: int) -> Ranks:
    """Set threads and seeds and return the processes of the run, of which this is one.

    Raises:
        ValueError: CUDA is asked for and absent, or a launcher was asked for several processes and started one.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is `cuda`, but torch sees no CUDA device. Set it to `auto` or `cpu`.")
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    one_thread_by_default()  # before what is asked for here, so that no agent or encoder does it after
    torch.set_num_threads(runtime.threads or max(1, available_cores() // on_machine))
    seed_everything(seed)
    precision = "bf16" if runtime.precision == "bf16" else "no"
    # Unless it knows that there are CPUs alone, Accelerate leaves the processes of torchrun by themselves.
    on_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
    if accelerator.num_processes != launched_processes():
        raise ValueError(
            f"{launched_processes()} processes were launched, and Accelerate joined {accelerator.num_processes} of "
            "them: each would do the whole work alone. Start them by `torchrun` or `accelerate launch`."
        )
    asked = _asked_of_accelerate() if accelerator.num_processes == 1 else 1
    if asked > 1:
        raise ValueError(
            f"`accelerate launch` was asked for {asked} processes and has started one: it does so where it sees no "
            f"second GPU. For processes on CPUs use `torchrun --nproc-per-node {asked} -m stages.<name>`."
        )
    return Ranks(accelerator)


def _asked_of_accelerate() -> int:
    """Return how many processes `accelerate launch`, if that started this one, was asked for."""
    words = psutil.Process(os.getppid()).cmdline()
    names = [Path(word).name for word in words]
    if "accelerate" in names and "launch" in words:
        rest = words[words.index("launch") + 1 :]
    elif "accelerate-launch" in names:
        rest = words[names.index("accelerate-launch") + 1 :]
    else:
        return 1
    with needs("pipeline"):  # only here, because it takes a second to import
        from accelerate.commands.config import default_config_file, load_config_from_file
        from accelerate.commands.launch import launch_command_parser

    given, _ = launch_command_parser().parse_known_args(rest)
    if given.num_processes is None and (given.config_file or Path(default_config_file).is_file()):
        return getattr(load_config_from_file(given.config_file), "num_processes", None) or 1
    return given.num_processes or 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. What is sampled in training draws from generators of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def run_stage(main: Callable[[], None], several: bool = False, processes: Callable[[], int] = lambda: 1) -> None:
    """Run a stage's `main` as a process: errors in one line, Ctrl-C and SIGTERM leave quietly, no orphan.

    Exit codes: 2 for an error the user can act on, 3 where another process of the run failed, 130 for Ctrl-C, 143 for
    SIGTERM. EFT_DEBUG=1 shows the traceback. EFT_LAUNCH, e.g. `torchrun --nproc-per-node 4`, is what a stage that can
    start as several processes starts itself with: the command in dvc.yaml stays the same on every machine.

    Args:
        main: of the stage.
        several: whether it may run as several processes.
        processes: how many of them it starts as where nobody has said so.
    """
    die_with_parent()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    stage, count = Path(sys.argv[0]).stem, launched_processes()
    name = stage if count == 1 else f"{stage} (rank {os.environ.get('RANK', '?')})"
    try:
        if several and count == 1:
            _become_several(stage, processes)
        if count > 1 and not several:
            raise ValueError(f"launched as {count} processes; it runs as one: `python -m stages.{stage}`")
        if os.environ.get("RANK", "0") == "0" and (line := where(stage)):
            print(line, file=sys.stderr, flush=True)
        main()
    except KeyboardInterrupt as interrupt:
        if not _started_by_launch():  # which says so once for all
            print(f"{name}: stopped. What was saved is kept: the same command goes on from there.", file=sys.stderr)
        _leave(143 if str(interrupt) == "SIGTERM" else 130, count)
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        details = traceback.format_exc() if os.environ.get("EFT_DEBUG") else ""
        _show(f"{details}{name}: {error}")
        _leave(_PEER_LOST if isinstance(error, PeerLost) else 2, count)
    except Exception:
        if count == 1:
            raise
        _show(traceback.format_exc())
        _leave(1, count)
    if dist.is_initialized():
        dist.destroy_process_group()


def _become_several(stage: str, processes: Callable[[], int]) -> None:
    """Run the stage as several processes and exit, if that is asked for; else return."""
    module = ["-m", f"stages.{stage}", *sys.argv[1:]]
    if launcher := shlex.split(os.environ.pop("EFT_LAUNCH", "")):
        os.execvp(launcher[0], [*launcher, *module])
    if (count := processes()) > 1:
        launch(stage, count, module)


def launch(name: str, count: int, arguments: Sequence[str]) -> NoReturn:
    """Run `python <arguments>` as several processes of this machine by torchrun's API, and exit as they did.

    The first process to fail ends the others, and its error alone is shown.

    Args:
        name: what an error begins with.
        count: how many processes.
        arguments: of Python, the same for all.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; it was passed on, and all processes have left.
    """
    # Only here, because it takes a second to import.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it logs of a failure or a signal would only repeat, at length, what is shown below.
    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.addHandler(logging.NullHandler())
    elastic.propagate = False
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # `start` sets what runtime.threads says
    with tempfile.TemporaryDirectory() as logs:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            role=_ROLE,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs),
            signals_to_handle="SIGTERM,SIGINT",
            shutdown_timeout=_SECONDS_TO_SAVE,
        )
        try:
            elastic_launch(settings, sys.executable)(*arguments)
        except SignalException as stopped:
            raise KeyboardInterrupt(stopped.sigval.name) from None
        except ChildFailedError as error:
            # Those that only followed, because they lost the first or were terminated after it, come last.
            followed = (_PEER_LOST, 128 + signal.SIGTERM, -signal.SIGTERM)
            failures = error.failures
            rank = min(failures, key=lambda one: (failures[one].exitcode in followed, failures[one].timestamp))
            message, code = failures[rank].message, failures[rank].exitcode
            print(message if code > 0 else f"{name} (rank {rank}): {message}", file=sys.stderr)
            sys.exit(code if code > 0 else 128 - code)  # a signal, as shells count it
    sys.exit(0)


def _started_by_launch() -> bool:
    return os.environ.get("ROLE_NAME") == _ROLE


def _show(error: str) -> None:
    """Print an error, or leave it to `launch`, which prints that of one process alone."""
    if _started_by_launch():
        content = {"message": error.rstrip(), "timestamp": int(time.time())}
        write_json(os.environ["TORCHELASTIC_ERROR_FILE"], content)  # in the form that torchrun reads
    else:
        print(error.rstrip(), file=sys.stderr)


def _leave(code: int, num_processes: int) -> None:
    if num_processes == 1:
        sys.exit(code)
    # At once: closing the connections is what tells the other processes, and tearing groups down could wait for them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed `dvc repro` leaves no trainer behind."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _raise_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt("SIGTERM")
