# How everything of this module is built: Istio and Kubernetes are then compiled
# once for the control plane, for the tests and for the linters.
export CGO_ENABLED=0 GOFLAGS='-trimpath -tags=vtprotobuf,disable_pgv'
