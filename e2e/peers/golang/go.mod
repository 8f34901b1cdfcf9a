// A library for Envoy's golang network filter that links the official package.
module github.com/meltemi-mesh/meltemi/e2e/peers/golang

go 1.26.0

require (
	github.com/envoyproxy/envoy v1.39.0
	google.golang.org/protobuf v1.36.11
)
