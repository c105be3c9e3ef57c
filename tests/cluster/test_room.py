"""How many workers there is room for, on clusters of one and of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from segmill.cluster.connection import connect
from segmill.cluster.resources import Resources, check_resources, even_share
from segmill.cluster.room import Room, room
from segmill.cluster.work import on_ray, wait
from segmill.errors import InfrastructureError

GIB = 2**30


def visible_gpu(_: None) -> list[str]:
    return [str(one) for one in ray.get_gpu_ids()]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A head of 2 CPUs and a node of 5 CPUs; Ray is given what they have, so GPUs need not be there."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "memory": 4 * GIB})
    try:
        cluster.add_node(num_cpus=5, memory=9 * GIB)
        with connect(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_workers_of_all_nodes_that_memory_allows(two_nodes: Cluster) -> None:
    assert room(GIB) == Room(Resources(1, 0, GIB), 7)
    assert room(2 * GIB) == Room(Resources(1, 0, 2 * GIB), 2 + 4)
    assert room(5 * GIB) == Room(Resources(1, 0, 5 * GIB), 1)
    assert room(10 * GIB) == Room(Resources(1, 0), 1)  # it is tried all the same


@pytest.mark.slow
def test_a_process_takes_no_more_than_a_node_has(two_nodes: Cluster) -> None:
    assert even_share(1) == 5, "of the 7 that both nodes have"
    check_resources("member a", Resources(2), times=3)
    with pytest.raises(
        InfrastructureError, match=r"^member a asks for 2 x 3 CPU and .* nodes with room for 1 of these"
    ):
        check_resources("member a", Resources(3), times=2)
    with pytest.raises(InfrastructureError, match=r"^member a asks for 4 x 2 CPU and the Ray cluster has 7; lower"):
        check_resources("member a", Resources(2), times=4)


@pytest.mark.long
@pytest.mark.slow
def test_one_worker_per_gpu_where_there_are_any(two_nodes: Cluster) -> None:
    node = two_nodes.add_node(num_cpus=4, num_gpus=3, memory=9 * GIB)
    two_nodes.wait_for_nodes()
    try:
        found = room(GIB)
        assert found == Room(Resources(1, 1, GIB), 3)
        running = [on_ray(visible_gpu, None, found.each) for _ in range(found.workers)]
        assert all(len(wait(one)) == 1 for one in running)
    finally:
        two_nodes.remove_node(node)
