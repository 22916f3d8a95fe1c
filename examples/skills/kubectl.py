"""Cluster operations to kubectl commands."""

import random

from examples.skills.common import Example, combine, from_phrasebook

NAME = "kubectl"
DESCRIPTION = (
    "Writes the kubectl command for a Kubernetes task: listing and inspecting pods, scaling and "
    "rolling deployments, reading logs, draining nodes."
)

APPS = (
    *("web", "api", "checkout", "frontend", "billing", "search", "auth", "gateway", "mailer"),
    *("inventory", "orders", "worker", "redis", "cache", "indexer", "reports", "chat"),
)
SLOTS = {
    "pod": combine(APPS, ("-0", "-1", "-2", "-7f9c", "-5d8b", "-9k2", "-4x7", "-1a")),
    "app": APPS,
    "ns": ("prod", "staging", "dev", "monitoring", "payments", "team-a", "default", "tools", "qa"),
    "node": combine(("node-", "worker-", "gpu-", "pool-", "edge-"), ("1", "2", "4", "7", "a", "b")),
    "file": combine(("deploy", "service", "ingress", "job", "app", "config"), (".yaml", ".yml")),
    "n": tuple(str(n) for n in range(1, 21)),
    "port": ("80", "443", "3000", "5432", "8000", "8080", "8443", "9090", "6379", "9200"),
}

PHRASEBOOK = {
    "kubectl get pods -n {ns}": (
        "[list|show|get] [the|all|all the] pods in [the |]{ns}[ namespace|]",
        "[which|what] pods [are running|run|do we have] in [the namespace |]{ns}?",
        "what is running in the {ns} namespace?",
    ),
    "kubectl get pods -A": (
        "[list|show|get] [all|the] pods [in|across|of] [all|every] namespace[s|]",
        "every pod in the [whole |entire |]cluster[, whatever the namespace|]",
        "[which|what] pods [do we have|are there] [in|on] the [whole|entire] cluster?",
        "show me pods cluster-wide",
    ),
    "kubectl logs {pod}": (
        "[show|print|get|read] [me |]the logs of [the |]pod {pod}",
        "what [did|does] [the |]pod {pod} [log|write to its logs]?",
        "I need the log output of pod {pod}",
    ),
    "kubectl logs -f {pod}": (
        "[follow|stream|tail|watch] the logs of [the |]pod {pod}[ live|]",
        "keep [showing|printing] [new |]log lines [of|from] pod {pod}[ as they come|]",
        "live logs from pod {pod}",
    ),
    "kubectl describe pod {pod}": (
        "[describe|give me details of|show the events of] [the |]pod {pod}",
        "why is [the |]pod {pod} [pending|not starting|stuck]? [show its events|show the details]",
        "details and events for pod {pod}",
    ),
    "kubectl delete pod {pod}": (
        "[delete|kill|remove] [the |]pod {pod}",
        "pod {pod} [hangs|is stuck], [kill it|delete it|get rid of it][ so it is recreated|]",
        "get rid of the pod {pod}",
    ),
    "kubectl scale deployment {app} --replicas={n}": (
        "[scale|set] [the |]{app} [deployment |]to {n} replicas",
        "[run|I want|give me] {n} [copies|replicas|instances|pods] of [the |]{app}[ deployment|]",
        "[scale up|scale out|resize] {app} so that {n} pods run",
        "make it {n} replicas for deployment {app}",
    ),
    "kubectl rollout restart deployment {app}": (
        "[restart|bounce] [all pods of |]the {app} deployment[ without downtime|]",
        "[do|trigger] a rolling restart of [the |]{app}[ deployment|]",
        "{app} pods must be restarted one by one",
    ),
    "kubectl rollout undo deployment {app}": (
        "[roll back|roll back the deployment] {app}[ to the previous version|]",
        "the last deployment of {app} is [bad|broken], [go back|roll it back]",
        "bring the previous version of deployment {app} back",
    ),
    "kubectl rollout status deployment {app}": (
        "is the rollout of [the |]{app}[ deployment|] [done|finished|complete][ yet|]?",
        "[check|watch|show] the [progress|status] of the {app} rollout",
        "how far is the rollout of {app}?",
    ),
    "kubectl apply -f {file}": (
        "[apply|deploy] [the manifest |]{file}[ to the cluster|]",
        "[create|update] the [resources|objects] [in|from] {file}[ in the cluster|]",
        "send the manifest {file} to the cluster",
    ),
    "kubectl get nodes": (
        "[list|show|get] [the|all|me the|all the] nodes[ in the cluster| of this cluster|]",
        "[which|what|how many] nodes [are in|belong to] the cluster?",
        "are all [the |]nodes [ready|healthy|up]?",
        "show me the machines of the cluster and whether they are ready",
    ),
    "kubectl drain {node}": (
        "[drain|evict everything from] [the node |]{node}",
        "[move|get] all pods off [the node |]{node}[ for maintenance|]",
        "empty node {node} for maintenance",
    ),
    "kubectl cordon {node}": (
        "[stop|prevent] [new pods from being scheduled|scheduling new pods] on [node |]{node}",
        "[cordon|mark as unschedulable] [the node |]{node}",
        "no new pods on node {node} please",
    ),
    "kubectl exec -it {pod} -- sh": (
        "[open|get|give me|start] a shell in[side|] [the |]pod {pod}",
        "[log|get|step] into [the |]pod {pod}[ with a shell| interactively|]",
        "I need a terminal in pod {pod}",
    ),
    "kubectl port-forward {pod} {port}": (
        "[forward|tunnel] port {port} of [the |]pod {pod} to my [machine|laptop|localhost]",
        "[reach|access] port {port} of pod {pod} [from|on] my [machine|laptop|localhost]",
        "make port {port} of pod {pod} reachable on localhost",
    ),
    "kubectl get svc -n {ns}": (
        "[list|show|get] [the|all|all the] services in [the |]{ns}[ namespace|]",
        "[which|what] services [exist|do we expose] in [the namespace |]{ns}?",
        "services of the {ns} namespace",
    ),
    "kubectl top pods -n {ns}": (
        "how much [cpu|memory|cpu and memory] do the pods in {ns} use?",
        "[show|get|what is] the [cpu|memory|resource] usage of [the |]pods in {ns}",
        "which pods in {ns} eat the most memory?",
    ),
    "kubectl create namespace {ns}": (
        "[create|make|add] a [new |]namespace [called |named |]{ns}",
        "[I need|we need|set up] a [new |]namespace [called |for |]{ns}[ in the cluster|]",
        "new namespace {ns}",
    ),
}


def generate(rng: random.Random) -> Example:
    """One request for one kubectl command."""
    return from_phrasebook(rng, PHRASEBOOK, SLOTS)
