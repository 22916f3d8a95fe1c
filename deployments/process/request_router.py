"""Ray Serve's part of the dispatch: a call goes to the replica that the admission chose."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class AssignedReplicaRouter(RequestRouter):  # type: ignore[misc]  # of Ray, untyped
    """Offers the assigned replica first, then all others.

    Serve asks each whether it has a place: an assignment that has become wrong costs a retry.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        assigned = pending_request.args[0].replica if pending_request else ""
        first = [r for r in candidate_replicas if r.replica_id.unique_id == assigned]
        others = [r for r in candidate_replicas if r.replica_id.unique_id != assigned]
        return [first, others]
