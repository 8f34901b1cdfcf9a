// Package controlplane stands for its go.mod: the versions of the stock programs
// that tools/istio.sh builds, and of Istio's code that its tests ask.
package controlplane
