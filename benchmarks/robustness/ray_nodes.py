"""Two Ray nodes on one machine, one of them killed in mid-run: are the rows those of a local run?

    python benchmarks/robustness/ray_nodes.py --out reports/robustness

Needs the extra [cluster]. The nodes have one CPU each, as Ray counts; steps compute on one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

from common import SUITE, publish, rows, table

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import ray
    from ray.cluster_utils import Cluster

    import compress

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        suite = folder / "small.toml"
        suite.write_text(SUITE)
        given = {"progress": False, "step_threads": 1}
        began = time.monotonic()
        local = compress.bench(suite, out=folder / "local", **given)
        local_seconds = time.monotonic() - began
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        killed = threading.Event()

        def kill(record: object) -> None:
            # While the first rows after the baseline are computed, on both nodes.
            if not killed.is_set():
                killed.set()
                threading.Timer(
                    1.0, lambda: cluster.remove_node(second, allow_graceful=False)
                ).start()

        began = time.monotonic()
        far = compress.bench(
            suite,
            out=folder / "ray",
            store=folder / "store",
            executor="ray",
            on_record=kill,
            **given,
        )
        seconds = time.monotonic() - began
        # Its tasks are started again at once; that a node is dead is listed some seconds later.
        until = time.monotonic() + 60
        while (alive := sum(node["Alive"] for node in ray.nodes())) > 1:
            if time.monotonic() > until:
                break
            time.sleep(1)
        ray.shutdown()
        cluster.shutdown()
        found = [
            ("all rows of the local run ok", local.ok),
            ("all rows of the run on the cluster ok", far.ok),
            ("nodes alive at its end", alive),
            ("rows equal the local run's", rows(folder / "local") == rows(folder / "ray")),
            ("seconds, local", f"{local_seconds:.1f}"),
            ("seconds, on the cluster", f"{seconds:.1f}"),
        ]
    publish(
        options.out / "ray-nodes.md",
        "Two Ray nodes, one of them killed",
        [table(("what", "found"), found)],
        "python benchmarks/robustness/ray_nodes.py --out reports/robustness",
    )


if __name__ == "__main__":
    main()
