module github.com/meltemi-mesh/meltemi/bench

go 1.26.0

replace github.com/meltemi-mesh/meltemi => ../

require (
	github.com/meltemi-mesh/meltemi v0.0.0-00010101000000-000000000000
<<<<<<< HEAD
	go.yaml.in/yaml/v3 v3.0.5
=======
	github.com/stretchr/testify v1.12.1
	golang.org/x/sys v0.50.0
>>>>>>> main
	google.golang.org/protobuf v1.36.12
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect
