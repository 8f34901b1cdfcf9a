{{/* There is one of it in a cluster, so that names do not depend on the release's. */}}
{{- define "meltemi.selector" -}}
app.kubernetes.io/name: meltemi-operator
{{- end }}

{{- define "meltemi.labels" -}}
{{ include "meltemi.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: meltemi
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "meltemi.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* "true" if Istio's sidecar is injected, for its certificate. */}}
{{- define "meltemi.sidecar" -}}
{{- if and .Values.rds.enabled (eq .Values.rds.certificates "sidecar") }}true{{ end }}
{{- end }}
