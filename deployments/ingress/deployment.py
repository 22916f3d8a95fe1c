"""The ingress: the gateway over Ray Serve handles, spoken to by HTTP."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster import members as reports
from cluster.calls import CALLS
from cluster.decisions import Decision, Prompt
from cluster.errors import Overloaded, ReplicaLost, Unavailable
from cluster.members import DeploymentState
from cluster.settings import RouterSettings, Settings
from deployments.ingress.admission import Admission, Place
from deployments.ingress.calls.answers import Meter
from deployments.ingress.fleet import Fleet
from deployments.ingress.http import build_http
from deployments.ingress.operations import operations
from deployments.ingress.terms import Terms
from deployments.process import metrics
from deployments.process.call import Call, Reply
from deployments.process.logs import configure
from deployments.process.loopback import listen_where_ray_does
from deployments.process.membership import Membership
from deployments.process.process import Process
from deployments.process.ray_health import RayHealth
from deployments.process.ray_metrics import RayExport
from deployments.process.ray_options import on_nodes
from deployments.process.serve_status import deployment_states
from deployments.process.tracing import Tracing, current
from deployments.process.wire import Part, unpacked
from router.adapters.constraints import Constraints

logger = logging.getLogger(__name__)

_CONTROLLER_S = 3.0


class ServePool:
    """The replicas of a base model behind a Serve handle. Implements `ReplicaPool`."""

    def __init__(
        self, model_id: str, handle: DeploymentHandle, fleet: Fleet, admission: Admission | None
    ) -> None:
        self._model_id = model_id
        self._fleet = fleet
        self._handle = handle.options(stream=True, method_name="answer")
        self._admission = admission

    def tasks(self) -> Collection[str]:
        return self._fleet.tasks(self._model_id)

    def running(self) -> list[str]:
        replicas = self._fleet.replicas(self._model_id)
        return [replica.id for replica in sorted(replicas, key=lambda r: r.ongoing)]

    @asynccontextmanager
    async def sent(self, call: Call) -> AsyncIterator[Reply]:
        async with aclosing(self._parts(call)) as parts:
            yield await unpacked(parts)

    @asynccontextmanager
    async def answer(self, call: Call, terms: Terms) -> AsyncIterator[Reply]:
        admission = self._admission
        if admission is None:
            async with self.sent(call) as reply:
                yield reply
            return
        async with AsyncExitStack() as held:
            with current().child("wait") as span:
                place = await held.enter_async_context(admission.turn(call, terms))
                span.note(replica=place.replica)
            placed = admission.placed(call, place)
            parts = await held.enter_async_context(aclosing(self._parts(placed)))
            reply = await unpacked(parts)
            if reply.start.is_stream:
                place.has_begun()
            meter = Meter(CALLS[call.path], reply.start.is_stream)
            yield Reply(reply.start, _counted(reply.body, meter, place))

    async def _parts(self, call: Call) -> AsyncGenerator[Part, None]:
        """What Serve brings, and what it raises in our words."""
        response = self._handle.remote(call)
        try:
            async for part in response:
                yield part
        except BackPressureError as e:
            raise Overloaded(
                f"every replica of {self._model_id} is busy and its queue is full; try again soon"
            ) from e
        except (RayActorError, DeploymentUnavailableError) as e:
            raise ReplicaLost(f"the replica of {self._model_id} that had this request died") from e
        except (GeneratorExit, asyncio.CancelledError):
            # The client left: without this the replica would generate to the end.
            response.cancel()
            raise


async def _counted(
    body: AsyncGenerator[bytes, None], meter: Meter, place: Place
) -> AsyncGenerator[bytes, None]:
    """For the queue: what was generated, and that it is all."""
    async for chunk in body:
        meter.take(chunk)
        place.answer_tokens, place.is_answered = meter.tokens, meter.is_whole
        yield chunk
    place.is_answered = True


class ServeChooser:
    """The prompt-router deployment behind a Serve handle. Implements `Chooser`."""

    def __init__(self, handle: DeploymentHandle, settings: RouterSettings) -> None:
        self._handle = handle.options(method_name="choose")
        self._settings = settings
        self._turn_of_lists = asyncio.Lock()

    async def choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        if len(prompts) == 1:
            return await self._choose(prompts, constraints)
        decisions = []
        # A long list in one piece, or many at once, would keep the prompts of requests waiting.
        for start in range(0, len(prompts), self._settings.max_batch):
            part = prompts[start : start + self._settings.max_batch]
            async with self._turn_of_lists:
                decisions += await self._choose(part, constraints)
        return decisions

    async def _choose(self, prompts: list[Prompt], constraints: Constraints) -> list[Decision]:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                decisions: list[Decision] = await self._handle.remote((prompts, constraints))
                return decisions
        except TimeoutError as e:
            raise Unavailable(f"no decision within {self._settings.timeout_s} s") from e
        except (RayError, RayServeException) as e:
            logger.warning("the prompt router failed", exc_info=e)
            raise Unavailable(f"the prompt router failed ({type(e).__name__})") from e


class Ingress:
    """One HTTP process."""

    def __init__(
        self,
        settings: Settings,
        router: DeploymentHandle,
        _planner: DeploymentHandle,
        models: dict[str, DeploymentHandle],
    ) -> None:
        """`_planner` is never called; Serve runs what the ingress is bound to, and nothing else."""
        self._settings = settings
        process_id = serve.get_replica_context().replica_id.unique_id
        configure(settings.logging, process_id)
        listen_where_ray_does()
        self._process = process = Process(settings.store, process_id, RayExport())
        process.add(Tracing(settings.telemetry, "ingress", process_id))
        process.telemetry.on_reading(self._measure)
        members = process.store.members
        process.add(Membership(members, process.catalogue, self._report))
        self._fleet = process.add(Fleet(members, settings.placement))
        self._ray = process.add(RayHealth())
        self._admissions: list[Admission] = []
        pools = {
            model_id: ServePool(model_id, handle, self._fleet, self._admission_of(model_id))
            for model_id, handle in models.items()
        }
        chooser = ServeChooser(router, settings.router)
        self._offered = operations(
            settings,
            process,
            chooser,
            pools,
            self._fleet.want,
            self._deployments,
            self._ray.missing,
        )

    async def check_health(self) -> None:
        self._process.check()

    def _measure(self) -> None:
        """Set the gauges of the registry, which every ingress knows."""
        metrics.rollout_share.clear()
        for adapter in self._process.catalogue.adapters.values():
            if adapter.rollout is not None:
                share = adapter.rollout.percent / 100
                metrics.rollout_share.labels(adapter.name).set(share)

    def _report(self) -> reports.Ingress:
        demand = self._fleet.demand()
        return reports.Ingress(
            id=self._process.id,
            position=self._process.catalogue.position,
            demand=demand,
            times=self._fleet.times(demand),
            tenants=self._fleet.tenants(),
            waiting=sum((a.queued() for a in self._admissions), Counter()),
            arrivals=self._offered.admin.arrivals(),
        )

    def _admission_of(self, model_id: str) -> Admission | None:
        settings = self._settings
        if settings.dispatch.policy == "serve":
            return None
        admission = Admission(
            self._fleet,
            settings.model(model_id),
            settings.dispatch,
            settings.admission,
            ray.util.get_node_ip_address(),
        )
        self._admissions.append(admission)
        return admission

    async def _deployments(self) -> tuple[DeploymentState, ...]:
        """None at all while Serve's controller does not answer: the rest is told all the same."""
        if self._ray.missing():
            return ()  # a thread that asked would be stuck
        try:
            async with asyncio.timeout(_CONTROLLER_S):
                return await asyncio.to_thread(deployment_states)
        except (TimeoutError, RayError, RayServeException) as e:
            logger.warning("Serve's controller does not tell its deployments: %r", e)
            return ()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_http(
            self._offered,
            self._settings.http,
            self._settings.auth,
            lifespan=self._lifespan,
            is_traced=self._settings.telemetry.otlp_endpoint is not None,
        )

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await self._process.start()
        yield
        await self._process.stop()


def ingress_app(settings: Settings, router: Any, planner: Any, models: dict[str, Any]) -> Any:
    """The deployment, bound to the deployments that it calls."""
    return (
        serve.deployment(serve.ingress()(Ingress))
        .options(
            name="Ingress",
            num_replicas=settings.http.ingress_replicas,
            max_ongoing_requests=4096,
            ray_actor_options={"num_cpus": 0.1} | on_nodes(settings.http.node_labels),
        )
        .bind(settings, router, planner, models)
    )
