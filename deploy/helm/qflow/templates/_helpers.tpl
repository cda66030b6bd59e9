{{/* The release's name before everything, short enough for the suffixes that follow. */}}
{{- define "qflow.name" -}}
{{- if contains "qflow" .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- else -}}{{ printf "%s-qflow" .Release.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{/* Labels by which a service's pods are chosen; call with (dict "root" . "service" "registry"). */}}
{{- define "qflow.selector" -}}
app.kubernetes.io/name: qflow
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}
{{- end -}}

{{- define "qflow.labels" -}}
{{ include "qflow.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "qflow.image" -}}
{{- $registry := .root.Values.image.registry | trimSuffix "/" -}}
{{- with $registry }}{{ . }}/{{ end }}qflow-{{ .service }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "qflow.port" -}}
{{- get (dict "registry" 7101 "orchestrator" 7102 "runner" 7103 "telemetry" 7104) .service -}}
{{- end -}}

{{/* What the container of every pod may do: nothing but write to its home and to /tmp. */}}
{{- define "qflow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "qflow.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "qflow.environment" -}}
{{- $name := include "qflow.name" .root -}}
{{- $upper := upper .service -}}
{{- $port := include "qflow.port" . | int -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- $told := dict
  "QFLOW_SECRETS_FOLDER" "/run/qflow"
  "QFLOW_TLS_CA_FILE" "/run/qflow/authority.crt"
  "QFLOW_TLS_CERTIFICATE_FILE" "/run/qflow/service.crt"
  "QFLOW_TLS_KEY_FILE" "/run/qflow/service.key"
  "QFLOW_SERVICE_CERTIFICATE_FILE" "/run/qflow/service.crt"
  "QFLOW_SERVICE_KEY_FILE" "/run/qflow/service.key"
  "QFLOW_REGISTRY_ADDRESS" (printf "%s-registry:7101" $name)
  "QFLOW_ORCHESTRATOR_ADDRESS" (printf "%s-orchestrator:7102" $name)
  "QFLOW_RUNNER_ADDRESS" (printf "%s-runner:7103" $name)
  "QFLOW_TELEMETRY_ADDRESS" (printf "%s-telemetry:7104" $name)
  "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS" (printf "%s-orchestrator:7122" $name)
  "QFLOW_RUNNER_INTERNAL_ADDRESS" (printf "%s-runner:7123" $name)
  "QFLOW_LOG_LEVEL" .root.Values.logLevel
-}}
{{- $_ := set $told (printf "QFLOW_%s_LISTEN" $upper) (printf "0.0.0.0:%d" $port) -}}
{{- $_ := set $told (printf "QFLOW_%s_METRICS_LISTEN" $upper) (printf "0.0.0.0:%d" (add $port 10)) -}}
{{- with .root.Values.redisUrl }}{{ $_ := set $told "QFLOW_REDIS_URL" . }}{{ end -}}
{{- if eq .service "orchestrator" -}}
{{- $_ := set $told "QFLOW_ORCHESTRATOR_ATTACH_LISTEN" "0.0.0.0:7122" -}}
{{- $_ := set $told "QFLOW_ORCHESTRATOR_ATTACH_ADVERTISE" "$(POD_IP):7122" -}}
{{- $_ := set $told "QFLOW_WEBHOOK_KEY_FILE" "/run/qflow/webhook.key" -}}
{{- end -}}
{{- if eq .service "runner" -}}
{{- $_ := set $told "QFLOW_RUNNER_NAME" "$(POD_NAME)" -}}
{{- $_ := set $told "QFLOW_RUNNER_INTERNAL_LISTEN" "0.0.0.0:7123" -}}
{{- $_ := set $told "QFLOW_MINIMUM_TIER" .root.Values.services.runner.minimumTier -}}
{{- with .root.Values.files.s3 -}}
{{- if .bucket }}{{ $_ := set $told "QFLOW_FILES_S3_BUCKET" .bucket }}{{ end -}}
{{- if .endpoint }}{{ $_ := set $told "QFLOW_FILES_S3_ENDPOINT" .endpoint }}{{ end -}}
{{- if .region }}{{ $_ := set $told "QFLOW_FILES_S3_REGION" .region }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $told = mergeOverwrite $told .root.Values.settings (get .root.Values.services .service).settings -}}
{{- range $setting, $value := $told }}
- name: {{ $setting }}
  value: {{ $value | quote }}
{{- end -}}
{{- end -}}

{{/* The pod of one service. Kubernetes' own gRPC probe speaks no TLS, so the service's image asks. */}}
{{- define "qflow.pod" -}}
{{- $values := get .root.Values.services .service -}}
{{- $port := include "qflow.port" . | int -}}
{{- $probe := list "python" "-m" "services.standalone.probe" (printf "%s=127.0.0.1:%d" .service $port) "authorities=/run/qflow/authority.crt" -}}
metadata:
  labels: {{- include "qflow.labels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "qflow.name" .root }}-{{ .service }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # A service drains for up to 27 seconds.
  terminationGracePeriodSeconds: 40
  securityContext: {{- include "qflow.podSecurity" . | nindent 4 }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "qflow.selector" . | nindent 10 }}
  containers:
    - name: {{ .service }}
      image: {{ include "qflow.image" . }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      securityContext: {{- include "qflow.containerSecurity" . | nindent 8 }}
      env: {{- include "qflow.environment" . | nindent 8 }}
      ports:
        - {name: grpc, containerPort: {{ $port }}}
        - {name: metrics, containerPort: {{ add $port 10 }}}
        {{- if eq .service "orchestrator" }}
        - {name: attach, containerPort: 7122}
        {{- else if eq .service "runner" }}
        - {name: internal, containerPort: 7123}
        {{- end }}
      startupProbe:
        exec: {command: {{ toJson $probe }}}
        periodSeconds: 5
        timeoutSeconds: 10
        failureThreshold: 36
      readinessProbe:
        exec: {command: {{ toJson $probe }}}
        periodSeconds: 20
        timeoutSeconds: 10
      livenessProbe:
        tcpSocket: {port: grpc}
        periodSeconds: 20
        timeoutSeconds: 5
        failureThreshold: 6
      resources: {{- toYaml $values.resources | nindent 8 }}
      volumeMounts:
        - {name: home, mountPath: /var/lib/qflow}
        - {name: temporary, mountPath: /tmp}
        - {name: secrets, mountPath: /run/qflow, readOnly: true}
  volumes:
    {{- if ne .service "runner" }}
    - name: home
      emptyDir: {sizeLimit: 1Gi}
    {{- end }}
    - name: temporary
      emptyDir: {sizeLimit: 2Gi}
    - name: secrets
      secret:
        secretName: {{ get .root.Values.secrets .service }}
        defaultMode: 0440
{{- end -}}
