{{/* A RayService's name has at most 47 characters, and begins with a letter. */}}
{{- define "roundhouse.name" -}}
{{- default .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What pods are selected by: KubeRay gives app.kubernetes.io/name a value of its own, and selects by
it. The cluster's name changes with every upgrade; this does not. */}}
{{- define "roundhouse.selector" -}}
roundhouse/release: {{ include "roundhouse.name" . | quote }}
{{- end -}}

{{- define "roundhouse.labels" -}}
app.kubernetes.io/name: roundhouse
app.kubernetes.io/instance: {{ include "roundhouse.name" . | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* An incremental upgrade has a service per cluster, and a Gateway before them; jobs and Prometheus
then use a service of ours. */}}
{{- define "roundhouse.service" -}}
{{- if eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{ include "roundhouse.name" . }}-any
{{- else -}}
{{ include "roundhouse.name" . }}-serve-svc
{{- end -}}
{{- end -}}

{{- define "roundhouse.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-cuda" .Chart.AppVersion) }}
{{- end -}}

{{- define "roundhouse.endpoint" -}}
http://{{ include "roundhouse.service" . }}.{{ .Release.Namespace }}.svc:8000
{{- end -}}

{{/* The pod security standard "restricted". */}}
{{- define "roundhouse.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "roundhouse.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "roundhouse.resources" -}}
requests:
  cpu: {{ .cpu | quote }}
  memory: {{ .memory | quote }}
limits:
  memory: {{ .memory | quote }}
{{- end -}}

{{/* The names by which clients may ask, as JSON: those of the values, and the chart's own. */}}
{{- define "roundhouse.hosts" -}}
{{- $service := include "roundhouse.service" . -}}
{{- $inside := printf "%s.%s" $service .Release.Namespace -}}
{{- $hosts := list $service $inside (printf "%s.svc" $inside) (printf "%s.svc.cluster.local" $inside) -}}
{{- if .Values.ingress.enabled }}{{ $hosts = append $hosts .Values.ingress.host }}{{ end -}}
{{- if .Values.gateway.enabled }}{{ $hosts = append $hosts .Values.gateway.host }}{{ end -}}
{{- concat (dig "http" "allowed_hosts" (list) .Values.settings) $hosts | uniq | toJson -}}
{{- end -}}

{{/* The settings, with the places that this chart mounts, and where its pods listen. */}}
{{- define "roundhouse.settings" -}}
{{- $bytes := mul .Values.nodeCache.gib 1073741824 -}}
{{- $cache := dict "path" "/var/cache/roundhouse/adapters" "max_bytes" $bytes -}}
{{- $http := dict "host" "0.0.0.0" -}}
{{- $ours := dict "store" (dict "data_dir" "/var/lib/roundhouse") "node_cache" $cache "http" $http -}}
{{- $settings := mergeOverwrite $ours (deepCopy .Values.settings) -}}
{{- /* With keys, any name does unless the values have some. */}}
{{- if or (not (dig "auth" "enabled" false $settings)) (dig "http" "allowed_hosts" false $settings) }}
{{- $_ := set $settings.http "allowed_hosts" (include "roundhouse.hosts" . | fromJsonArray) }}
{{- end }}
{{- toYaml $settings -}}
{{- end -}}

{{- define "roundhouse.requestTimeout" -}}
{{ dig "http" "request_timeout_s" 600 .Values.settings }}
{{- end -}}

{{/* What Ray Serve is told; the settings are those of `roundhouse up`. */}}
{{- define "roundhouse.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  request_timeout_s: {{ include "roundhouse.requestTimeout" . }}
logging_config:
  log_level: WARNING
  enable_access_log: false
applications:
  - name: roundhouse
    route_prefix: /
    import_path: deployments.app:build
    args:
      {{- include "roundhouse.settings" . | nindent 6 }}
{{- end -}}

{{/* The Secret with the included Redis's password, as JSON; of a Redis that an earlier release has
installed without one, none: it stays as it is until you name one. */}}
{{- define "roundhouse.redisPassword" -}}
{{- $name := printf "%s-redis" (include "roundhouse.name" .) -}}
{{- $there := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if .Values.redis.passwordSecret.name -}}
{{ toJson .Values.redis.passwordSecret }}
{{- else if and $there (not (contains "--requirepass" (toJson $there))) (not (lookup "v1" "Secret" .Release.Namespace $name)) -}}
{}
{{- else -}}
{{ toJson (dict "name" $name "key" "password") }}
{{- end -}}
{{- end -}}

{{/* Where the store is; a Secret's URL wins, then the included server. */}}
{{- define "roundhouse.storeEnv" -}}
{{- if .Values.store.urlSecret.name }}
- name: ROUNDHOUSE_STORE__URL
  valueFrom: {secretKeyRef: {{ toJson .Values.store.urlSecret }}}
{{- else if .Values.redis.enabled }}
{{- $password := include "roundhouse.redisPassword" . | fromJson }}
{{- with $password }}
- name: ROUNDHOUSE_STORE_PASSWORD
  valueFrom: {secretKeyRef: {{ toJson . }}}
{{- end }}
- name: ROUNDHOUSE_STORE__URL
  value: redis://{{ if $password }}:$(ROUNDHOUSE_STORE_PASSWORD)@{{ end }}{{ include "roundhouse.name" . }}-redis:6379/0
{{- end }}
{{- with .Values.secrets.authKeys }}
{{- if .name }}
- name: ROUNDHOUSE_AUTH__KEYS
  valueFrom: {secretKeyRef: {{ toJson . }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "roundhouse.hubEnv" -}}
# What the hub's client downloads; a volume that is only read has no room for it.
- {name: HF_HOME, value: {{ ternary "/tmp/hub" "/models/hub" .Values.models.readOnly }}}
{{- with .Values.secrets.hfToken }}
{{- if .name }}
- name: HF_TOKEN
  # Only gated models need it.
  valueFrom: {secretKeyRef: {{ toJson (merge (dict "optional" true) .) }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "roundhouse.rayEnv" -}}
# For the command line, in a shell of any pod.
- {name: ROUNDHOUSE_URL, value: {{ include "roundhouse.endpoint" . | quote }}}
- {name: ROUNDHOUSE_CONFIG, value: /etc/roundhouse/roundhouse.yaml}
{{ include "roundhouse.storeEnv" . | trim }}
{{ include "roundhouse.hubEnv" . }}
# Deployments call each other from process to process, by the caller's own event loop.
- {name: RAY_SERVE_USE_GRPC_BY_DEFAULT, value: "1"}
- {name: RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP, value: "0"}
# HAProxy before the ingresses; it hears at once of one that goes.
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_HAPROXY_BINARY_PATH, value: /usr/local/bin/roundhouse-haproxy}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, value: "2"}
- {name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S, value: "3600"}
{{- range $setting := list "max_connections" "max_connections_per_address" }}
{{- with dig "http" $setting "" $.Values.settings }}
- {name: ROUNDHOUSE_HTTP__{{ upper $setting }}, value: {{ . | quote }}}
{{- end }}
{{- end }}
- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: deployments.ingress.edge.legible.before_serve}
# A call between them has the request's body in it.
- {name: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, value: "268435456"}
- {name: RAY_worker_niceness, value: "0"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
# On SIGTERM the node drains: replicas move, requests end, then it goes.
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ .Values.drainSeconds | quote }}}
{{- range $name, $value := .Values.env }}
- {name: {{ $name | quote }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "roundhouse.envFrom" -}}
{{- range .Values.secrets.environment }}
- secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- define "roundhouse.volumes" -}}
- name: config
  configMap: {name: {{ include "roundhouse.name" . }}}
- name: data
  {{- if .Values.data.enabled }}
  persistentVolumeClaim:
    claimName: {{ .Values.data.existingClaim | default (printf "%s-data" (include "roundhouse.name" .)) }}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: models
  {{- if .Values.models.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.models.existingClaim }}
    readOnly: {{ .Values.models.readOnly }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}

{{- define "roundhouse.mounts" -}}
- {name: config, mountPath: /etc/roundhouse, readOnly: true}
- {name: data, mountPath: /var/lib/roundhouse}
- {name: models, mountPath: /models{{ if .Values.models.readOnly }}, readOnly: true{{ end }}}
{{- end -}}

{{/* What the pods of jobs have in common. Takes {root, command (list), mounts, volumes}. */}}
{{- define "roundhouse.jobPod" -}}
{{- $root := .root -}}
restartPolicy: Never
serviceAccountName: {{ include "roundhouse.name" $root }}
automountServiceAccountToken: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "roundhouse.podSecurity" 1000 | nindent 2 }}
containers:
  - name: roundhouse
    image: {{ include "roundhouse.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: {{ toJson .command }}
    env:
      - {name: ROUNDHOUSE_URL, value: {{ include "roundhouse.endpoint" $root | quote }}}
      - {name: ROUNDHOUSE_CONFIG, value: /etc/roundhouse/roundhouse.yaml}
      {{- with $root.Values.secrets.adminKey }}
      {{- if .name }}
      - name: ROUNDHOUSE_API_KEY
        valueFrom: {secretKeyRef: {{ toJson . }}}
      {{- end }}
      {{- end }}
      {{- include "roundhouse.storeEnv" $root | nindent 6 }}
    {{- with include "roundhouse.envFrom" $root | trim }}
    envFrom:
      {{- . | nindent 6 }}
    {{- end }}
    resources:
      {{- include "roundhouse.resources" (dict "cpu" "250m" "memory" "1Gi") | nindent 6 }}
    securityContext:
      {{- include "roundhouse.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /etc/roundhouse, readOnly: true}
      {{- range .mounts }}
      - {{ toJson . }}
      {{- end }}
volumes:
  - name: config
    configMap: {name: {{ include "roundhouse.name" $root }}}
  {{- range .volumes }}
  - {{ toJson . }}
  {{- end }}
{{- end -}}

{{- define "roundhouse.podSpec" -}}
terminationGracePeriodSeconds: {{ add .root.Values.drainSeconds 30 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .group.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .group.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "roundhouse.podSecurity" 1000 | nindent 2 }}
{{- end -}}
{{- define "roundhouse.container" -}}
image: {{ include "roundhouse.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  {{- include "roundhouse.rayEnv" .root | nindent 2 }}
{{- with include "roundhouse.envFrom" .root | trim }}
envFrom:
  {{- . | nindent 2 }}
{{- end }}
resources:
  requests:
    cpu: {{ .group.resources.cpu | quote }}
    memory: {{ .group.resources.memory | quote }}
  limits:
    memory: {{ .group.resources.memory | quote }}
    {{- if .group.gpus }}
    {{ .group.gpuResource | quote }}: {{ .group.gpus }}
    {{- end }}
securityContext:
  {{- include "roundhouse.containerSecurity" .root | nindent 2 }}
{{- end -}}

{{/* What every pod of Ray's may reach: the others, names, and what you have added. */}}
{{- define "roundhouse.egress" -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "roundhouse.selector" . | nindent 10 }}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
    # Where names are answered on OpenShift, behind the service's port.
    - {port: 5353, protocol: UDP}
    - {port: 5353, protocol: TCP}
{{- with .Values.networkPolicy.egress.to }}
{{ toYaml . }}
{{- end }}
{{- end -}}
