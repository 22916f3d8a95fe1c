"""Every Redis key, in one place.

All keys of a namespace share one hash tag, so that a script may touch any of them in a
Redis Cluster.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """Key names under one namespace.

    Adapters, and what was counted, are shared by all Ray clusters of a namespace. Who is there, and
    the plan of what is where, are a cluster's own: during an upgrade two serve side by side.
    """

    namespace: str
    cluster: str = ""

    def _key(self, *parts: str) -> str:
        return ":".join(("{" + self.namespace + "}", *parts))

    def _own(self, *parts: str) -> str:
        return self._key("cluster", self.cluster, *parts)

    def _of(self, owner: str, what: str, *parts: str) -> str:
        """A tenant's; of nobody's, as releases before have it.

        With its length, for the name may have colons.
        """
        if not owner:
            return self._key(what, *parts)
        return self._key(f"{what}-of", str(len(owner)), owner, *parts)

    @property
    def names(self) -> str:
        """Sorted set of adapter names, all with score 0, ordered by name."""
        return self._key("names")

    @property
    def events(self) -> str:
        """Stream of changes: ``sequence``, ``kind``, ``name``."""
        return self._key("events")

    @property
    def sequence(self) -> str:
        """Counter of events: a follower that finds a gap reads a snapshot."""
        return self._key("sequence")

    @property
    def schema(self) -> str:
        """Number of the layout of all these keys; see `registry.SCHEMA`."""
        return self._key("schema")

    @property
    def reports(self) -> str:
        """Stream of member ids whose report changed, for those who wait for one."""
        return self._own("reports")

    @property
    def members(self) -> str:
        """Sorted set: member id -> Unix time at which its lease ends."""
        return self._own("members")

    @property
    def preload(self) -> str:
        """How far `roundhouse up` is with the adapters that it registers, as JSON."""
        return self._own("preload")

    @property
    def base_models(self) -> str:
        """Hash: base model id -> those facts that the release before knows, as JSON."""
        return self._key("base-models")

    @property
    def facts(self) -> str:
        """Hash: base model id -> facts as JSON."""
        return self._key("base-model-facts")

    def adapter(self, name: str) -> str:
        """Hash: card, revision, alias:<alias>, version:<number>, previous, [last_]rollout."""
        return self._key("adapter", name)

    @property
    def issued(self) -> str:
        """Hash: adapter name -> highest version number ever given.

        It outlives the adapter: `name@version` keys caches, so it must never be used twice.
        """
        return self._key("issued")

    def member(self, member_id: str) -> str:
        """The member's report as JSON; expires with its lease."""
        return self._own("member", member_id)

    def arrivals(self, member_id: str) -> str:
        """What the member brings in as JSON, beside its report, which the release before reads."""
        return self._own("arrivals", member_id)

    def blob(self, digest: str) -> str:
        """Set of ``name@version`` that use the blob, and ``router`` for a trained encoder's."""
        return self._key("blob", digest)

    def reserved(self, digest: str) -> str:
        """Sorted set: reservation -> Unix time in ms until which somebody needs the blob."""
        return self._key("blob-reserved", digest)

    @property
    def condemned(self) -> str:
        """Sorted set: digest -> Unix time in ms until which the collector may remove the blob."""
        return self._key("blobs-condemned")

    def once(self, token: str) -> str:
        """The reply to a change, for a minute, should its answer get lost on the way."""
        return self._key("once", token)

    def resolving(self, name: str) -> str:
        """Who fetches an adapter that was asked for; expires, so that another takes over."""
        return self._key("resolving", name)

    def unresolved(self, places: str) -> str:
        """Why no adapter can be had there; expires, so that it is tried again."""
        return self._key("unresolved", places)

    @property
    def resolved(self) -> str:
        """Sorted set: adapter that was fetched when asked for -> Unix time of the last request."""
        return self._key("resolved")

    def driver(self, name: str) -> str:
        """Who moves the adapter's rollout on; expires, so that another takes over."""
        return self._key("driver", name)

    @property
    def leader(self) -> str:
        """Who makes the plans; expires, so that another takes over."""
        return self._own("plan-leader")

    @property
    def fence(self) -> str:
        """Counter of leaders: the number of the newest one."""
        return self._own("plan-fence")

    @property
    def plan(self) -> str:
        """The newest plan of what is where, as JSON."""
        return self._own("plan")

    @property
    def plans(self) -> str:
        """Stream of a note per plan, for those who wait for one."""
        return self._own("plans")

    @property
    def rules(self) -> str:
        """Stream of the rules of the choice, the newest of which hold: ``revision``, ``record``."""
        return self._key("rules")

    @property
    def encoders(self) -> str:
        """Stream of records of the trained encoders, the newest of which holds: ``revision``,
        ``record``."""
        return self._key("encoders")

    @property
    def training(self) -> str:
        """Lease of whoever trains an encoder now."""
        return self._key("training")

    def decision(self, owner: str, request_id: str) -> str:
        """What was decided about a tenant's request, as JSON; expires."""
        return self._of(owner, "decision", request_id)

    def rated(self, owner: str, request_id: str) -> str:
        """That a tenant's request has its feedback; expires with the decision."""
        return self._of(owner, "rated", request_id)

    def rated_other(self, owner: str, request_id: str, candidate: str) -> str:
        """That it has feedback on a candidate that did not answer it; expires with the decision."""
        return self._of(owner, "rated-other", str(len(candidate)), candidate, request_id)

    @property
    def decisions(self) -> str:
        """Stream of the newest decisions: ``record``, JSON."""
        return self._key("decisions")

    def outcomes(self, owner: str) -> str:
        """Stream of how well a tenant's requests were answered: ``record``, JSON."""
        return self._of(owner, "outcomes")

    @property
    def raters(self) -> str:
        """Sorted set: tenant -> Unix time in ms of its newest feedback."""
        return self._key("raters")

    def answered(self, owner: str) -> str:
        """Hash: mark of a turn of a tenant's conversation -> what answered it, as JSON."""
        return self._of(owner, "conversations")

    def answered_at(self, owner: str) -> str:
        """Sorted set: mark -> Unix time in ms, of the store's clock; the oldest go first."""
        return self._of(owner, "conversations-at")

    def batch(self, owner: str, batch_id: str) -> str:
        """Hash: a tenant's batch: ``order`` and ``progress``, JSON, and ``cancelling_at``; expires
        some time after it has ended."""
        return self._of(owner, "batch", batch_id)

    def batches(self, owner: str) -> str:
        """Sorted set: a tenant's batch -> Unix time of its making."""
        return self._of(owner, "batches")

    @property
    def open_batches(self) -> str:
        """Sorted set: tenant and batch as JSON -> Unix time of its making, until it has ended."""
        return self._key("open-batches")

    @property
    def newest_batches(self) -> str:
        """Sorted set: the newest of :attr:`open_batches`, for people; the ended ones stay."""
        return self._key("newest-batches")

    def batch_worker(self, batch_id: str) -> str:
        """Who works on a batch; expires, so that another takes over."""
        return self._key("batch-worker", batch_id)

    def batch_file(self, owner: str, file_id: str) -> str:
        """What a tenant's file is, as JSON; the content is beside the blobs."""
        return self._of(owner, "batch-file", file_id)

    def batch_files(self, owner: str) -> str:
        """Sorted set: a tenant's file -> Unix time of its making."""
        return self._of(owner, "batch-files")

    @property
    def expiring(self) -> str:
        """Sorted set: tenant and file as JSON -> Unix time of the file's end."""
        return self._key("batch-files-expiring")

    def metrics(self, member_id: str) -> str:
        """A process's metrics, packed; expires soon after it has stopped to renew them."""
        return self._key("metrics", member_id)

    @property
    def measured(self) -> str:
        """Sorted set: process -> Unix time until which its metrics are there."""
        return self._key("measured")

    def history(self, width_s: int, start: int) -> str:
        """Hash: what was counted in a bucket of time -> how often; expires."""
        return self._key("history", str(width_s), str(start))

    def counted(self, member_id: str) -> str:
        """Number of the newest counts of a process that are in the history."""
        return self._key("counted", member_id)

    def usual(self, quarter: int) -> str:
        """Hash: adapter -> requests a second that are usual in this quarter hour of the day."""
        return self._key("usual", str(quarter))

    def noted(self, what: str) -> str:
        """That the journal has this; expires. Every cluster's planner tells it."""
        return self._key("noted", what)

    def journal(self, *, loads: bool) -> str:
        """Stream of what happened, for people: ``record``, JSON, and ``owner``. Loads have their
        own: they are many, and would push out the rest."""
        return self._key("journal", "loads") if loads else self._key("journal")
