"""What `import ddsm_zoo` takes beside `import timm`: ``python benchmarks/speed/import_time.py [ROUNDS]``.

Each program starts ROUNDS times (7 unless given) in a process of its own, the programs taking turns, so that whatever
else the machine does hits all of them alike. Prints the median of the seconds by the clock, from start to end of the
process, and of those that the processor worked for it. The bar is timm's time and 0.3 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "python alone": "",
    "`import timm`": "import timm",
    "`import ddsm_zoo`": "import ddsm_zoo",
    # Each name is imported when it is first used; this uses them all.
    "and every public name": "import ddsm_zoo; [getattr(ddsm_zoo, name) for name in ddsm_zoo.__all__]",
}
CLOCK = "\nimport time; print(time.process_time())"


def measure(program: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    began = time.perf_counter()
    command = [sys.executable, "-c", program + CLOCK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - one of the above
    return time.perf_counter() - began, float(done.stdout)


def main(rounds: int) -> None:
    """Print the table."""
    for program in PROGRAMS.values():  # fills the disk cache
        measure(program)
    taken = [{title: measure(program) for title, program in PROGRAMS.items()} for _ in range(rounds)]
    print("| Program | Clock (s) | Processor (s) |\n| --- | ---: | ---: |")
    for title in PROGRAMS:
        clock, processor = (statistics.median(values) for values in zip(*(turn[title] for turn in taken), strict=True))
        print(f"| {title} | {clock:.2f} | {processor:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
