"""Of vLLM's server arguments, those that cannot work behind our ingress, and what does instead.

A replica calls vLLM's OpenAI application in-process: nothing of vLLM's listens anywhere, and
clients reach only what the ingress offers.
"""

from collections.abc import Iterable

_LISTENS = "no socket of vLLM's is opened; see http.host and http.port"
_PAGES = "set http.cors.origins, http.cors.methods and http.cors.headers"
_TLS = "TLS ends before the endpoint: at an ingress, a gateway or a proxy of yours"
_LOGS = "set logging.level and logging.requests"
_DOCS = "vLLM's pages are not offered; docs/endpoint.md and /openapi.json tell the endpoint's calls"
_HEADS = "set http.max_body_bytes; HAProxy bounds the headers"
_SUPERVISED = "Ray Serve starts, checks and replaces replicas; set models[].replicas"
_NOT_OFFERED = "the endpoints that it opens are not offered"

# Argument -> where to set it, or why there is nothing to set.
_INSTEAD = {
    "host": _LISTENS,
    "port": _LISTENS,
    "uds": _LISTENS,
    "grpc_port": _LISTENS,
    "data_parallel_supervisor_port": _SUPERVISED,
    "dp_supervisor_probe_interval_s": _SUPERVISED,
    "dp_supervisor_probe_timeout_s": _SUPERVISED,
    "dp_supervisor_probe_failure_threshold": _SUPERVISED,
    "uvicorn_log_level": _LOGS,
    "disable_uvicorn_access_log": _LOGS,
    "disable_access_log_for_endpoints": _LOGS,
    "allow_credentials": "keys are sent as a header, never by the browser itself; " + _PAGES,
    "allowed_origins": _PAGES,
    "allowed_methods": _PAGES,
    "allowed_headers": _PAGES,
    "api_key": "set auth.enabled and auth.keys",
    "ssl_keyfile": _TLS,
    "ssl_certfile": _TLS,
    "ssl_ca_certs": _TLS,
    "ssl_cert_reqs": _TLS,
    "ssl_ciphers": _TLS,
    "enable_ssl_refresh": _TLS,
    "root_path": "have the proxy before the endpoint take the prefix off",
    "middleware": "it would see no client's request; have a proxy before the endpoint do it",
    "enable_request_id_headers": "every answer has x-request-id",
    "disable_fastapi_docs": _DOCS,
    "enable_offline_docs": _DOCS,
    "h11_max_incomplete_event_size": _HEADS,
    "h11_max_header_count": _HEADS,
    "lora_modules": "set preload, or register them: roundhouse adapters add",
    "enable_tokenizer_info_endpoint": _NOT_OFFERED,
    "enable_scale_out": _NOT_OFFERED,
    "tokens_only": _NOT_OFFERED,
    "enable_server_load_tracking": "see roundhouse status, GET /v1/cluster and /metrics",
}


def refused(names: Iterable[str]) -> str | None:
    """Why not all of these arguments can be given; None when they can."""
    said = [
        f"{name}: has no effect behind the endpoint; {_INSTEAD[name]}"
        for name in names
        if name in _INSTEAD
    ]
    return "; ".join(said) or None
