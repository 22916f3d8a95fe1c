{{/* What a schema cannot say: values that do not go together. */}}
{{- define "roundhouse.validate" -}}
{{- $name := include "roundhouse.name" . -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) }}
{{- fail (printf "nameOverride: %q must begin with a lower-case letter; lower-case letters, digits and '-' may follow" $name) }}
{{- end }}
{{- if regexMatch "^(on|off|yes|no|y|n|true|false|null)$" $name }}
{{- fail (printf "nameOverride: %q means something else in YAML; choose another name" $name) }}
{{- end }}
{{- $settings := .Values.settings -}}
{{- $groups := list -}}
{{- range $i, $given := .Values.workers }}
{{- $group := mergeOverwrite (deepCopy $.Values.workerDefaults) $given }}
{{- if has $group.name $groups }}
{{- fail (printf "workers.%d.name: %s is there already" $i $group.name) }}
{{- end }}
{{- $groups = append $groups $group.name }}
{{- if or (gt (int $group.minReplicas) (int $group.replicas)) (gt (int $group.replicas) (int $group.maxReplicas)) }}
{{- fail (printf "workers.%d: minReplicas <= replicas <= maxReplicas is needed" $i) }}
{{- end }}
{{- end }}
{{- $ids := list -}}
{{- range $i, $model := $settings.models }}
{{- if has $model.id $ids }}
{{- fail (printf "settings.models.%d.id: %s is there already" $i $model.id) }}
{{- end }}
{{- $ids = append $ids $model.id }}
{{- if and $model.max_replicas (lt (int $model.max_replicas) (int ($model.replicas | default 1))) }}
{{- fail (printf "settings.models.%d.max_replicas: must be at least replicas" $i) }}
{{- end }}
{{- end }}
{{- if and $settings.default_model (not (has $settings.default_model $ids)) }}
{{- fail (printf "settings.default_model: %s is not one of settings.models" $settings.default_model) }}
{{- end }}
{{- range $part := concat $settings.models (list (dig "router" (dict) $settings) (dig "http" (dict) $settings)) }}
{{- $wanted := dig "node_labels" "roundhouse/group" "" $part }}
{{- if and $wanted (not (has $wanted $groups)) }}
{{- fail (printf "settings: node_labels ask for roundhouse/group %s, which is none of workers (%s)" $wanted (join ", " $groups)) }}
{{- end }}
{{- end }}
{{- range $i, $model := $settings.models }}
{{- $wanted := dig "node_labels" "roundhouse/group" "" $model }}
{{- $gpus := mulf ($model.gpus_per_worker | default 0) ($model.tensor_parallel_size | default 1) }}
{{- range $given := $.Values.workers }}
{{- $group := mergeOverwrite (deepCopy $.Values.workerDefaults) $given }}
{{- if eq $wanted $group.name }}
{{- if gt $gpus (float64 $group.gpus) }}
{{- fail (printf "settings.models.%d: a replica needs %v GPUs of one pod, the worker group %s has %v" $i $gpus $group.name $group.gpus) }}
{{- end }}
{{- if and (gt $gpus 0.0) (gt (mulf $gpus ($model.replicas | default 1)) (mulf $group.gpus $group.maxReplicas)) }}
{{- fail (printf "settings.models.%d.replicas: %v of them need more GPUs than the worker group %s can have" $i ($model.replicas | default 1) $group.name) }}
{{- end }}
{{- if not $group.nodeCache }}
{{- fail (printf "workers: %s runs %s, and needs its nodeCache" $group.name $model.id) }}
{{- end }}
{{- $cpu := $group.resources.cpu }}
{{- if and (not (hasSuffix "m" $cpu)) (gt (float64 ($model.cpus_per_replica | default 1)) (float64 $cpu)) }}
{{- fail (printf "settings.models.%d.cpus_per_replica: the worker group %s has %s CPUs a pod" $i $group.name $cpu) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.env }}
{{- if or (hasPrefix "RAY_SERVE_" $name) (has $name (list "HF_HOME" "HF_TOKEN" "ROUNDHOUSE_URL" "ROUNDHOUSE_CONFIG" "ROUNDHOUSE_STORE__URL" "ROUNDHOUSE_AUTH__KEYS" "RAY_worker_niceness" "RAY_USAGE_STATS_ENABLED" "VLLM_NO_USAGE_STATS" "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" "REDIS_PASSWORD" "RAY_REDIS_ADDRESS")) }}
{{- fail (printf "env.%s: the chart or the operator sets it" $name) }}
{{- end }}
{{- end }}
{{- if and .Values.backup.restore (not .Values.backup.enabled) }}
{{- fail "backup.restore: needs backup.enabled, for its volume" }}
{{- end }}
{{- $names := list -}}
{{- range $i, $entry := dig "adapters" (list) .Values.adapters.manifest }}
{{- if has $entry.name $names }}
{{- fail (printf "adapters.manifest.adapters.%d: %s is there already" $i $entry.name) }}
{{- end }}
{{- $names = append $names $entry.name }}
{{- if not (or (contains "://" $entry.source) (hasPrefix "/" $entry.source)) }}
{{- fail (printf "adapters.manifest.adapters.%d.source: a URL, or an absolute folder of the image" $i) }}
{{- end }}
{{- end }}
{{- range $path, $secret := dict "store.urlSecret" .Values.store.urlSecret "redis.passwordSecret" .Values.redis.passwordSecret "gcs.passwordSecret" .Values.gcs.passwordSecret "secrets.hfToken" .Values.secrets.hfToken "secrets.authKeys" .Values.secrets.authKeys "secrets.adminKey" .Values.secrets.adminKey }}
{{- if ne (empty $secret.name) (empty $secret.key) }}
{{- fail (printf "%s: name and key are needed, or neither" $path) }}
{{- end }}
{{- end }}
{{- if and (not .Values.redis.enabled) (not .Values.store.urlSecret.name) }}
{{- fail "store.urlSecret: the included Redis is off; name the Secret with the store's URL" }}
{{- end }}
{{- if and .Values.gcs.faultTolerance (not .Values.gcs.redisAddress) (or (not .Values.redis.enabled) .Values.store.urlSecret.name) }}
{{- fail "gcs.redisAddress: there is no included Redis; name the one for Ray's own state, or set gcs.faultTolerance to false" }}
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.networkPolicy.egress.enabled (or .Values.store.urlSecret.name .Values.gcs.redisAddress) (not .Values.networkPolicy.egress.to) }}
{{- fail "networkPolicy.egress.to: the Redis is your own; say where the pods reach it, or set networkPolicy.egress.enabled to false" }}
{{- end }}
{{- if and (not .Values.data.enabled) (not (contains "://" (dig "store" "blobs" "" $settings))) }}
{{- fail "settings.store.blobs: data.enabled is false; name the object storage for the adapters' files" }}
{{- end }}
{{- $asks := dig "auth" "enabled" false $settings -}}
{{- if not (or $asks (dig "auth" "open" false $settings)) }}
{{- fail "settings.auth: pods listen on every address; set settings.auth.enabled, and secrets.authKeys, or settings.auth.open if whoever reaches the endpoint may use it and change adapters" }}
{{- end }}
{{- if and $asks (not .Values.secrets.authKeys.name) (not (dig "auth" "keys" (list) $settings)) }}
{{- fail "secrets.authKeys: settings.auth.enabled is true; name the Secret with the keys" }}
{{- end }}
{{- if and $asks .Values.adapters.enabled (not .Values.secrets.adminKey.name) }}
{{- fail "secrets.adminKey: settings.auth.enabled is true, and the job of the adapters needs a key" }}
{{- end }}
{{- if eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade" }}
{{- if not .Values.autoscaling.enabled }}
{{- fail "autoscaling.enabled: an incremental upgrade needs it" }}
{{- end }}
{{- if gt (int .Values.upgrade.stepSizePercent) (int .Values.upgrade.maxSurgePercent) }}
{{- fail "upgrade.stepSizePercent: at most upgrade.maxSurgePercent" }}
{{- end }}
{{- if or .Values.ingress.enabled .Values.gateway.enabled }}
{{- fail (printf "ingress, gateway: during an incremental upgrade clients go by the Gateway that the operator makes, %s-gateway" $name) }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}
{{- fail "ingress.host: the name that clients use" }}
{{- end }}
{{- if and .Values.gateway.enabled (not .Values.gateway.host) }}
{{- fail "gateway.host: the name that clients use" }}
{{- end }}
{{- end -}}
