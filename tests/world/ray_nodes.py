"""Two nodes of Ray on this machine: print the address of their cluster, then obey lines: "remove", "add", "end"."""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    """Run until the line "end" comes, or the input ends."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    node = cluster.add_node(num_cpus=2)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "remove":
                cluster.remove_node(node, allow_graceful=False)
            case "add":
                node = cluster.add_node(num_cpus=2)
            case "end":
                break
        print("done", flush=True)
    cluster.shutdown()


main()
