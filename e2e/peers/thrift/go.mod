module github.com/meltemi-mesh/meltemi/e2e/peers/thrift

go 1.26

require github.com/apache/thrift v0.25.0
