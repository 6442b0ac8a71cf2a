// Package backendv1 is the wire form of the backend contract (generated from
// backend.proto). Plugin authors use plugins/sdk and package backends; the
// translation between the two is plugins/backendrpc.
package backendv1

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative backend.proto"
