"""Ray Serve's replicas on a node that is for its own machine alone.

A replica listens on every interface for calls from other replicas, wherever else Ray listens, and
unpacks what comes there as Python objects. Ray asks for its token first; on such a node nobody else
needs to reach it at all.
"""

import ray
from ray._common.network_utils import build_address
from ray.serve._private import replica

from cluster.addresses import is_loopback


def listen_where_ray_does() -> None:
    """Of the replica in this process, before it listens: called as its deployment is made."""
    node = ray.util.get_node_ip_address()
    if is_loopback(node):
        listen = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, _: listen(server, build_address(node, 0))
