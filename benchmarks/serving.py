"""The worker's side of `processes.Process`: answers commands. It needs only Python, in any environment."""

import json
import sys
import traceback
from pathlib import Path


def serve(make):
    """Make a worker from the command line's arguments, and call its methods: a line `[name, options]`, an answer line."""
    try:
        worker = make(*sys.argv[1:])
        print(json.dumps({"result": None}), flush=True)
        for line in sys.stdin:
            name, options = json.loads(line)
            print(json.dumps({"result": getattr(worker, name)(**options)}), flush=True)
    except Exception as error:
        traceback.print_exc()
        text = str(error).partition("\n")[0]
        print(json.dumps({"error": text if " " in text else repr(error)}), flush=True)


def peak_memory():
    """Return the peak of this process's memory, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, where there is no /proc
