module github.com/meltemi-mesh/meltemi/bench

go 1.26.0
