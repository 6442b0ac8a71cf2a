// Package errorsv1 holds the error detail that Moraine's gRPC services attach
// to a status. Use plugins/errdefs, not this package.
package errorsv1

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative errors.proto"
