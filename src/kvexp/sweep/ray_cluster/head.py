"""List the nodes of a cluster: `python -m kvexp.sweep.ray_cluster.head` runs until its input closes.

It is sent the arguments of `connect` as a line of JSON: so it joins a cluster, or starts one of this host,
which ends with it. It says `cluster` with its address and its nodes. Where that cannot be, it ends, and its
last words say why.
"""

import json
import os
import sys

from kvexp.host.process import request_kill_on_parent_death, send_answer, start_serving
from kvexp.sweep.ray_cluster.connect import connect


def serve() -> None:
    """Answer the one request on the standard input."""
    out = start_serving()
    request = json.loads(sys.stdin.readline())
    try:
        connect(**request)
    except Exception as error:  # noqa: BLE001  # Ray raises several
        print(error, file=sys.stderr, flush=True)  # noqa: T201  # the last words
        os._exit(1)
    # Killed with the parent, this process would leave agents of Ray behind; its input ends, too.
    request_kill_on_parent_death(is_wanted=False)
    import ray

    nodes = [
        {
            "id": node["NodeID"],
            "host": node["NodeManagerHostname"],
            "num_gpus": int(node["Resources"].get("GPU", 0)),
            "num_cpus": int(node["Resources"].get("CPU", 0)),
        }
        for node in ray.nodes()
        if node["Alive"]
    ]
    send_answer(out, event="cluster", address=ray.get_runtime_context().gcs_address, nodes=nodes)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    serve()
