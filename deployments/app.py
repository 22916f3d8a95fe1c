"""The one builder: settings in, the whole Ray Serve application out."""

from typing import Any

from cluster.settings import Settings, parse_settings


def build(args: dict[str, Any]) -> Any:
    """Wire everything (`import_path: deployments.app:build`; `args` is the settings tree)."""
    return wire(parse_settings(args, source="args"))


def wire(settings: Settings) -> Any:
    """The ingress, bound to the prompt router, the planner and one deployment per base model."""
    from deployments.ingress import ingress_app
    from deployments.planner import planner_app
    from deployments.prompt_router import prompt_router_app
    from deployments.replica import replica_app

    router = prompt_router_app(settings)
    models = {model.id: replica_app(settings, model) for model in settings.models}
    return ingress_app(settings, router, planner_app(settings), models)
