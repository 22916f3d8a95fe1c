"""What the chart can be told, as one pydantic tree: `values.yaml` and its schema are made from it.

`settings` is the tree of `roundhouse.yaml`, checked by the same models.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cluster.addresses import NOT_PUBLIC

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Host = Annotated[str, StringConstraints(pattern=r"^(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.?)*$")]
Network = Annotated[str, StringConstraints(pattern=r"^[0-9a-f.:]+/[0-9]{1,3}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$")]
Labels = dict[str, str]
# As Kubernetes has it; its own schema is held against what is rendered.
Kubernetes = dict[str, Any]


class Part(BaseModel):
    """A group of values; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


class SecretKey(Part):
    """One key of a Secret that exists."""

    name: str = Field("", description="Of the Secret; empty: none.")
    key: str = Field("", description="In it.")


class Image(Part):
    repository: Annotated[str, StringConstraints(min_length=1)] = Field(
        "roundhouse", description="Built from k8s/images/Dockerfile; your registry's name for it."
    )
    tag: str = Field("", description="Default: the chart's appVersion with `-cuda`.")
    pullPolicy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pullSecrets: list[Name] = Field([], description="Names of Secrets for the registry.")


class Resources(Part):
    cpu: Quantity = Field("1", description="Requested; not limited.")
    memory: Quantity = Field("4Gi", description="Requested, and the limit.")


class Head(Part):
    resources: Resources = Resources(cpu="2", memory="6Gi")
    nodeSelector: Labels = {}
    tolerations: list[Kubernetes] = []
    priorityClassName: str = ""
    runtimeClassName: str = ""


class WorkerDefaults(Part):
    """What worker groups have unless they say otherwise."""

    replicas: int = Field(1, ge=0, description="Pods at the start.")
    minReplicas: int = Field(1, ge=0)
    maxReplicas: int = Field(1, ge=1, description="The autoscaler adds pods up to here.")
    resources: Resources = Resources()
    gpus: int = Field(0, ge=0, description="GPUs of each pod.")
    gpuResource: str = Field("nvidia.com/gpu", description="Their name in Kubernetes.")
    nodeCache: bool = Field(True, description="Room for adapters; pods without models need none.")
    idleTimeoutSeconds: int = Field(300, ge=1, description="Then an unused pod is given back.")
    nodeSelector: Labels = {}
    tolerations: list[Kubernetes] = []
    priorityClassName: str = ""
    runtimeClassName: str = Field("", description="Such as nvidia, where GPUs need one.")
    podAnnotations: Labels = {}


class WorkerGroup(WorkerDefaults):
    """Pods of one kind; the name is their label `roundhouse/group`, for `node_labels`."""

    name: Label


class Gcs(Part):
    """Ray's own state. Kept in Redis, the cluster survives the loss of its head."""

    faultTolerance: bool = True
    redisAddress: str = Field("", description="host:port of a Redis; default: the included one.")
    passwordSecret: SecretKey = Field(SecretKey(), description="Of that Redis.")


class Autoscaling(Part):
    enabled: bool = Field(True, description="Ray's autoscaler (v2) beside the head.")
    resources: Resources = Resources(cpu="200m", memory="512Mi")


class Redis(Part):
    """The adapter store's server: one pod with an append-only file, enough for a start."""

    enabled: bool = True
    image: str = Field(
        "docker.io/valkey/valkey:9.1.2"
        "@sha256:418652cfb58ef879d4978c33553735d7147016032d5aefaa14c828e611eb9dfd",
        description="By its digest, of all platforms: a tag may be given to another image.",
    )
    resources: Resources = Resources(cpu="500m", memory="1Gi")
    maxmemory: Annotated[str, StringConstraints(pattern=r"^[0-9]+(kb|mb|gb)$")] = Field(
        "640mb", description="Beyond it, changes are refused; about two thirds of the pod's memory."
    )
    storage: Quantity = Field("8Gi", description="Of the volume.")
    storageClass: str = Field("", description="Default: the cluster's own.")
    passwordSecret: SecretKey = Field(
        SecretKey(),
        description="Of its password: letters and digits, for it goes into a URL. Default: Helm "
        "makes one and keeps it; whoever only renders the chart names one here.",
    )


class Store(Part):
    """An adapter store of your own, instead of the included one."""

    urlSecret: SecretKey = Field(
        SecretKey(),
        description="The URL, password included: redis://, redis+sentinel://, redis+cluster://, "
        "with TLS rediss:// and so on.",
    )


class Data(Part):
    """Adapter files, unless settings.store.blobs names object storage."""

    enabled: bool = Field(True, description="A volume that all pods share.")
    existingClaim: str = Field("", description="A claim that is there already.")
    size: Quantity = "50Gi"
    storageClass: str = Field("", description="One that can be shared (ReadWriteMany).")
    accessMode: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        "ReadWriteMany", description="ReadWriteOnce does on a single node."
    )


class NodeCache(Part):
    gib: int = Field(
        4, ge=1, description="Memory of each worker for adapters that are ready to load."
    )


class Models(Part):
    """Where base models are read from, and downloaded to when they are hub ids."""

    existingClaim: str = Field("", description="A volume with models; default: the pod's own disk.")
    readOnly: bool = Field(False, description="Nothing is downloaded: all is there.")


class Secrets(Part):
    hfToken: SecretKey = Field(SecretKey(), description="For gated models and adapters.")
    authKeys: SecretKey = Field(
        SecretKey(), description="auth.keys as a JSON list, instead of in the settings."
    )
    adminKey: SecretKey = Field(
        SecretKey(), description="An admin's API key, for the jobs and the metrics."
    )
    environment: list[Name] = Field(
        [], description="Secrets whose keys become variables, such as AWS_ACCESS_KEY_ID."
    )


class ServiceAccount(Part):
    annotations: Labels = Field(
        {}, description="For object storage without keys: the cloud's role of the pods."
    )


class Adapters(Part):
    """Adapters from git: `roundhouse adapters apply` after each install and upgrade."""

    enabled: bool = False
    manifest: dict[str, Any] = Field(
        {"set": "default", "adapters": []}, description="As docs/adapters.md has it."
    )
    prune: bool = Field(False, description="Remove those that are no longer in the manifest.")
    readySeconds: int = Field(1800, ge=1, description="How long the cluster may take to start.")


class Backup(Part):
    enabled: bool = False
    schedule: str = Field("17 3 * * *", description="As cron has it.")
    keep: int = Field(7, ge=1, description="How many backups are kept.")
    restore: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*$")] = Field(
        "", description="Of the volume, a file to restore once, as roundhouse-....tar."
    )
    existingClaim: str = Field("", description="Where they are written; default: a volume is made.")
    size: Quantity = "50Gi"
    storageClass: str = ""


class Egress(Part):
    """What workers and jobs may reach besides each other and DNS.

    What they fetch is what users name: without this, it could be anything inside your network.
    """

    enabled: bool = True
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(
        [443], description="Of public addresses: the model hub, object storage. Empty: none."
    )
    except_: list[Network] = Field(
        list(NOT_PUBLIC),
        alias="except",
        description="Not public: private networks, and where clouds keep their metadata and keys.",
    )
    to: list[Kubernetes] = Field(
        [],
        description="More rules, as Kubernetes has them, for the head, too: a Redis of your own, "
        "object storage inside your network, a cloud's metadata where it gives pods their role.",
    )


class NetworkPolicy(Part):
    enabled: bool = True
    operatorNamespace: Name = Field("kuberay-system", description="Where the KubeRay operator is.")
    clients: list[Kubernetes] = Field(
        [], description="Peers that may call the endpoint; default: everybody."
    )
    monitoringNamespace: Name = Field("monitoring", description="Where Prometheus is.")
    egress: Egress = Egress()


class Monitoring(Part):
    podMonitor: bool = Field(False, description="Ray's and vLLM's metrics, by pod.")
    scrapeConfig: bool = Field(False, description="Roundhouse's own, from the endpoint, once.")
    alerts: bool = Field(False, description="A PrometheusRule.")
    dashboard: bool = Field(False, description="A ConfigMap that Grafana's sidecar finds.")
    labels: Labels = Field({}, description="That your Prometheus selects such objects by.")


class Ingress(Part):
    enabled: bool = False
    className: str = ""
    host: Host = Field("", description="The name that clients use.")
    tlsSecret: str = Field("", description="A certificate; without one, plain HTTP.")
    annotations: Labels = {}


class Gateway(Part):
    """An HTTPRoute of the Gateway API."""

    enabled: bool = False
    name: str = Field("", description="Of the Gateway.")
    namespace: str = Field("", description="Of the Gateway; default: this one.")
    host: Host = Field("", description="The name that clients use.")


class Upgrade(Part):
    """What happens when something but `settings` changes."""

    strategy: Literal["NewCluster", "NewClusterWithIncrementalUpgrade"] = Field(
        "NewCluster",
        description="A second cluster takes over when it is ready; incrementally, traffic moves "
        "step by step, and fewer GPUs are needed at once.",
    )
    gatewayClassName: str = Field("", description="Incremental upgrades need the Gateway API.")
    stepSizePercent: int = Field(10, ge=1, le=100, description="Of the traffic, at each step.")
    intervalSeconds: int = Field(30, ge=1, description="Between steps.")
    maxSurgePercent: int = Field(100, ge=0, le=100, description="Capacity beyond the present one.")


class Values(Part):
    """All values."""

    nameOverride: str = Field("", description="Default: the release's name.")
    image: Image = Image()
    rayVersion: str = "2.60.0"
    settings: dict[str, Any] = Field(
        {}, description="roundhouse.yaml; presets/ has some. All settings: docs/settings.md."
    )
    head: Head = Head()
    workers: list[WorkerGroup] = Field(
        [], min_length=1, description="Groups of pods; each has a name, and what differs from:"
    )
    workerDefaults: WorkerDefaults = WorkerDefaults()
    initializingTimeout: Annotated[str, StringConstraints(pattern=r"^([0-9]+(s|m|h))+$")] = Field(
        "1h",
        description="From the first pod to the first answer; then the operator gives up for good.",
    )
    rayToken: bool = Field(
        True, description="Ray's own ports ask for a token, which the operator makes."
    )
    drainSeconds: int = Field(
        120, ge=10, description="How long a pod that is ended may wait for its replacement."
    )
    gcs: Gcs = Gcs()
    autoscaling: Autoscaling = Autoscaling()
    redis: Redis = Redis()
    store: Store = Store()
    data: Data = Data()
    nodeCache: NodeCache = NodeCache()
    models: Models = Models()
    secrets: Secrets = Secrets()
    serviceAccount: ServiceAccount = ServiceAccount()
    adapters: Adapters = Adapters()
    backup: Backup = Backup()
    networkPolicy: NetworkPolicy = NetworkPolicy()
    monitoring: Monitoring = Monitoring()
    ingress: Ingress = Ingress()
    gateway: Gateway = Gateway()
    upgrade: Upgrade = Upgrade()
    env: dict[str, str] = Field({}, description="More variables of all Ray pods.")
    pdbMaxUnavailable: int = Field(
        1, ge=1, description="Pods of a group, below its minReplicas, that node drains may take."
    )
