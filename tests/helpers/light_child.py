"""A measuring process that measures nothing: it answers as `kvexp.bench.child` does, within 0.2 s.

Its GPU is the first of CUDA_VISIBLE_DEVICES, as it was sent or is set. The variable LIGHT_CHILD_COLUMNS has
more columns of its machine, as JSON. An implementation with the option `dies` kills it at the second point,
one with `waits` lets its points wait until that file is there, and one with `latency_us` takes so long for
each token.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from kvexp.experiment import Experiment
from kvexp.host.process import send_answer, start_serving
from kvexp.measurement import Measurement, Statistics


def serve():
    out = start_serving()
    device, _, visible = sys.stdin.readline().strip().partition(" ")
    columns = {
        "device_uuid": (visible or os.environ.get("CUDA_VISIBLE_DEVICES", "")).partition(",")[0],
        "device_name": "H200",
        "host": f"process {os.getpid()}",
        **json.loads(os.environ.get("LIGHT_CHILD_COLUMNS", "{}")),
    }
    send_answer(out, event="ready", device=device, environment=columns, refusal="")
    for line in sys.stdin:
        experiment = Experiment.from_json(json.loads(line)[0])
        send_answer(out, event="curve", impl_hash="1", is_host_sensitive=False)
        wanted = json.loads(sys.stdin.readline())["num_tokens"]
        options = experiment.impl.options
        for case in experiment.cases():
            if case.num_tokens not in wanted:
                continue
            if options.get("dies") and case.num_tokens != wanted[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            while options.get("waits") and not Path(options["waits"]).exists():
                time.sleep(0.01)
            own = {"environment": {**columns, "impl_hash": "1"}}
            if us := options.get("latency_us"):
                us *= case.num_tokens
                taken = Statistics(us, 0.999 * us, 1.001 * us, 0.99 * us, 1.01 * us, us, us, 0.01, 20)
                measured = Measurement(case, "ok", statistics=taken, copy_us=1.0, bytes_moved=8, **own)
            else:
                measured = Measurement(case, "verified", "not timed", **own)
            send_answer(out, event="point", row=measured.row(), samples_us=[], traceback="")
            sys.stdin.readline()
        send_answer(out, event="end", ends=False)


if __name__ == "__main__":
    serve()
