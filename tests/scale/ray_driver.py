"""A command on a Ray cluster: `ray_driver.py HOST:PORT NODE:STARTS...` ends when each of these nodes has done a task.

A node is named by its job's variables: `gpu1:1` is Slurm's node gpu1, in a job that has been requeued once. Without
nodes it goes on until the cluster is gone.
"""

from __future__ import annotations

import os
import sys
import time

import ray

from tests.scale.ray_loopback import believe_localhost


@ray.remote(num_cpus=1, max_retries=-1)
def where() -> str:
    """Work a moment; returns the node."""
    time.sleep(0.2)
    return f"{os.environ['SLURMD_NODENAME']}:{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def main() -> None:
    """Give out tasks, and print each node once, when it has done one."""
    believe_localhost()
    address, *wanted = sys.argv[1:]
    ray.init(address, log_to_driver=False)
    seen: set[str] = set()
    tasks = [where.remote() for _ in range(6)]
    while not wanted or not set(wanted) <= seen:
        done, tasks = ray.wait(tasks)
        for node in set(ray.get(done)) - seen:
            seen.add(node)
            print(node, flush=True)
        tasks += [where.remote() for _ in done]


if __name__ == "__main__":
    main()
