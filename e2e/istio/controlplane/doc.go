// Package controlplane only stands for its go.mod: the versions of the stock
// programs that tools/istio.sh builds.
package controlplane
