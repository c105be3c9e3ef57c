"""How many CPUs and GPUs a job may take of the cluster. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segmill.cluster.waiting import in_thread
from segmill.errors import InfrastructureError


@dataclass(frozen=True)
class Resources:
    """What one job holds while it runs: CPUs and GPUs, fractions allowed, and bytes of memory, where they are known."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory_bytes: int = 0

    def times(self, number: int) -> Resources:
        """Return what ``number`` such jobs hold together."""
        return Resources(self.num_cpus * number, self.num_gpus * number)


def total_resources() -> Resources:
    """Return the CPUs and GPUs of the whole cluster."""
    import ray

    total = in_thread(ray.cluster_resources)
    return Resources(total.get("CPU", 0), total.get("GPU", 0))


def each_node() -> list[Mapping[str, float]]:
    """Return what each node that is alive has, by Ray's names (CPU, GPU, memory)."""
    import ray

    return [node["Resources"] for node in in_thread(ray.nodes) if node["Alive"]]


def even_share(workers: int) -> float:
    """Return the CPUs for each of ``workers`` processes that train at the same time: whole ones where it can be.

    At least half a CPU, so that never more than two trainings crowd on one; the others wait. At most those of the node
    with the most: a process runs on one node.
    """
    share = min(total_resources().num_cpus / workers, whole_node().num_cpus)
    return float(int(share)) if share >= 1 else max(0.5, int(share * 100) / 100)


def whole_node() -> Resources:
    """Return all CPUs, and a GPU where there is one, of the node with the most CPUs."""
    largest = max(each_node(), key=lambda has: has.get("CPU", 0))
    return Resources(largest.get("CPU", 0), min(1, largest.get("GPU", 0)))


def check_resources(what: str, each: Resources, times: int = 1) -> None:
    """Raise InfrastructureError where the cluster, when idle, has no room for ``times`` x ``each``.

    Each is on one node: Ray would wait for ever for one that is larger than any.
    """
    nodes, total = each_node(), total_resources()
    for kind, amount, has in (("CPU", each.num_cpus, total.num_cpus), ("GPU", each.num_gpus, total.num_gpus)):
        said = f"{what} asks for {times} x {amount:g} {kind} and the Ray cluster has"
        fix = f"lower ray.workers or ray.{kind.lower()}s_per_worker, or add nodes"
        if amount * times > has:
            raise InfrastructureError(f"{said} {has:g}; {fix}")
        room = sum(int(node.get(kind, 0) / amount) for node in nodes) if amount else times
        if room < times:
            raise InfrastructureError(f"{said} nodes with room for {room} of these; {fix}")
