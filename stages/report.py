"""Draw what all stages left behind on one page."""

from pathlib import Path

from pipeline.report import write_report
from pipeline.run.launch import run_stage

TARGET = Path("checkpoints/report/report.html")


def main() -> None:
    """Write checkpoints/report/report.html, and say which stages it could not show."""
    results = write_report(Path(), TARGET)
    for stage, path in results.missing.items():
        print(f"report: without `{stage}`, which has not run: there is no {path}")
    print(f"report: {TARGET.resolve().as_uri()} ({TARGET.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    run_stage(main)
