"""The one builder: settings in, the whole Ray Serve application out."""

from typing import Any

from cluster.addresses import is_loopback
from cluster.errors import ConfigError
from cluster.settings import Settings, door_problem, parse_settings
from deployments.process.serve_status import serve_host


def build(args: dict[str, Any]) -> Any:
    """Wire everything (`import_path: deployments.app:build`; `args` is the settings tree)."""
    settings = in_this_cluster(parse_settings(args, source="args"))
    # `roundhouse up` alone does that; here nobody would, and ingresses would wait for it.
    return wire(settings.model_copy(update={"preload": ()}))


def in_this_cluster(settings: Settings) -> Settings:
    """The settings with the name of the Ray cluster that this process is connected to."""
    import ray

    if settings.store.cluster or not ray.is_initialized():
        return settings
    name = ray.get_runtime_context().get_session_name()
    return settings.model_copy(
        update={"store": settings.store.model_copy(update={"cluster": name})}
    )


def as_served(settings: Settings) -> Settings:
    """The settings with `http.host` as it is: Ray Serve listens where it was told to by whoever
    started it. Where it cannot be asked, only a host that the settings name is taken at its word.
    """
    told = settings.http.host if "host" in settings.http.model_fields_set else "0.0.0.0"
    if is_loopback(serve_host() or told):
        return settings
    return settings.model_copy(
        update={"http": settings.http.model_copy(update={"host": "0.0.0.0"})}
    )


def wire(settings: Settings) -> Any:
    """The ingress, bound to the prompt router, the planner and one deployment per base model.

    Raises:
        ConfigError: everybody could enter, or nobody.
    """
    settings = as_served(settings)
    if problem := door_problem(settings):
        raise ConfigError(problem)
    from deployments.chooser.deployment import prompt_router_app
    from deployments.ingress.deployment import ingress_app
    from deployments.planner.deployment import planner_app
    from deployments.replica.deployment import replica_app

    router = prompt_router_app(settings)
    models = {model.id: replica_app(settings, model) for model in settings.models}
    return ingress_app(settings, router, planner_app(settings), models)
