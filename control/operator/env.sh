# How everything of this module is built: Kubernetes' libraries are then compiled once for
# the operator, for its tests and for the linters.
export CGO_ENABLED=0
