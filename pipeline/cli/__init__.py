"""The command `eft`, one file per group of commands.

Torch and the simulators are imported inside the commands that need them, so that `eft --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence

from pipeline.cli import act, adapt, check_data, grow, hub, importing, init, play, preset, space, tasks, teach

GROUPS = (
    tasks,
    check_data,
    act,
    play,
    adapt,
    teach,
    grow,
    hub,
    space,
    importing,
    init,
    preset,
)  # in the order of the help

DESCRIPTION = """\
Eft pretrains a language-conditioned world model on demonstrations, finetunes it on many tasks at once,
and adapts it to tasks it has never seen. `dvc repro` runs the whole; these commands look at its parts.
"""
EXAMPLES = """\
examples:
  eft tasks                                    every task of the catalogue
  eft tasks --suite dmcontrol --tag locomotion
  eft tasks walker-run                         one task, with all its texts
  eft tasks --check                            which domains work on this machine
  eft check-task my_tasks/juggle.yaml --frame juggle.png
  eft check-data my_tasks/demos                what demonstrations hold, and what learning would not see
  eft act checkpoints/finetune/model --task walker-run --video run.mp4
  eft act checkpoints/finetune/model --task walker-run --instruction "Stand still."
  eft play checkpoints/finetune/model          a page: type a sentence, watch the robot do it, drive it yourself
  eft adapt checkpoints/finetune/model --task my_tasks/juggle.yaml --demos my_demos --env-steps 20000
  eft teach cheetah-run                        a small expert, for demonstrations
  eft grow checkpoints/finetune/model wider --obs-dim 192
  eft info user/name                           sizes, tasks and scores of a release on the Hub
  eft act user/name --task walker-run --video run.mp4
  eft push --repo user/name --dry-run          what a push of the release would send
  eft space my-space --checkpoint user/name    the page as a Space on the Hub
  eft import minari data/door-human --task my-door
  eft init my-project && cd my-project && dvc repro      without a checkout of Eft
  eft preset mt50 && dvc repro                 a larger set-up, written into params.yaml
  eft preset newt size-b                       the published numbers with a smaller model
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 an error to act on, 130 Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a letter of a task's texts
        sys.stdout.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    if "" not in sys.path:
        sys.path.append("")  # modules of the user's own environments, in the working folder: as `python -m` has it
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`eft tasks | head`) has seen enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        if options.debug:
            raise
        print(f"eft {options.command}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="eft",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
    )
    version = importlib.metadata.version("eft")
    parser.add_argument("-V", "--version", action="version", version=f"eft {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add_to(commands)
    return parser
