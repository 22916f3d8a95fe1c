"""What the endpoint offers, wired: settings, a process, and the ways to other processes in."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from adapter_store.batches.contents import Contents
from adapter_store.batches.ledger import Ledger
from adapter_store.encoders.kept import EncoderStore
from adapter_store.routing_log import RoutingLog, RoutingRecorder
from adapter_store.server import Server
from cluster.calls import CALLS, Shape
from cluster.members import DeploymentState
from cluster.settings import RouterSettings, Settings
from deployments.ingress.answering.pools import ReplicaPool
from deployments.ingress.base_models import BaseModels
from deployments.ingress.batches.jobs import Jobs
from deployments.ingress.batches.runner import Runner
from deployments.ingress.changes.admin import AdapterAdmin
from deployments.ingress.changes.evaluation import Evaluation
from deployments.ingress.changes.proof import Proof
from deployments.ingress.changes.rollout_driver import RolloutDriver
from deployments.ingress.conversations.memory import Conversations
from deployments.ingress.dashboard.summary import Dashboard
from deployments.ingress.directory import Directory
from deployments.ingress.feedback import Feedback
from deployments.ingress.gateway import Gateway
from deployments.ingress.overview import Overview
from deployments.ingress.resolver import Resolver
from deployments.ingress.rules.book import Book
from deployments.ingress.rules.choice import Choice, Chooser
from deployments.process.process import Process


def _log(settings: RouterSettings, server: Server) -> RoutingLog:
    keep_conversations_s = settings.keep_conversations_s if settings.stay_margin else 0
    return RoutingLog(
        server, keep_s=settings.keep_decisions_s, keep_conversations_s=keep_conversations_s
    )


@dataclass(frozen=True)
class Operations:
    """All of it, for `http.py`."""

    gateway: Gateway
    directory: Directory
    base_models: BaseModels
    overview: Overview
    admin: AdapterAdmin
    feedback: Feedback
    dashboard: Dashboard
    rules: Book
    jobs: Jobs
    encoders: EncoderStore


def operations(
    settings: Settings,
    process: Process,
    chooser: Chooser,
    pools: Mapping[str, ReplicaPool],
    want: Callable[[str | None, str], None],
    deployments: Callable[[], Awaitable[tuple[DeploymentState, ...]]],
    unwell: Callable[[], list[str]] = list,
) -> Operations:
    """Wire them; what runs in the background joins the process.

    Args:
        pools: by base model.
        want: told of every request: the adapter (None: the base model), and the tenant.
        deployments: what Ray Serve says that runs.
        unwell: what of Ray itself does not answer, in words.
    """
    store, catalogue = process.store, process.catalogue
    log = _log(settings.router, store.server)
    record = process.add(RoutingRecorder(log)).record
    if settings.router.stay_margin:
        talks = Conversations(chooser, log, lambda: catalogue.is_stale, record)
        chooser, record = talks, talks.record
    directory = Directory(catalogue, pools)
    admin = process.add(AdapterAdmin(settings, store, catalogue, Proof(pools).prove))
    overview = Overview(settings, store.members, store.plans, directory, deployments, unwell)
    resolver = process.add(Resolver(settings.store, store, catalogue, admin.blobs, admin.resolve))
    rules = process.add(Book(settings.router.rules, store.rules, directory))
    choice = Choice(settings, directory, chooser, rules, store.members)
    gateway = Gateway(settings, directory, choice, pools, record, want, resolver)
    ledger = Ledger(store.server, keep_s=settings.batch.keep_s)
    ask = Evaluation(pools, directory).ask
    process.add(RolloutDriver(store, catalogue, process.id, ask))
    return Operations(
        gateway,
        directory,
        BaseModels(store.registry),
        overview,
        admin,
        Feedback(log, settings, directory),
        Dashboard(directory, overview, process.telemetry, store.telemetry, log, ledger),
        rules,
        _jobs(settings, process, gateway, ledger),
        store.encoders,
    )


def _jobs(settings: Settings, process: Process, gateway: Gateway, ledger: Ledger) -> Jobs:
    contents = Contents(settings.store)
    runner = Runner(settings.batch, ledger, contents, gateway.complete, process.id)
    # A line of a file is JSON: no recording is in it.
    endpoints = [path for path, kind in CALLS.items() if kind.shape is not Shape.AUDIO]
    return Jobs(settings.batch, ledger, contents, process.add(runner), endpoints)
