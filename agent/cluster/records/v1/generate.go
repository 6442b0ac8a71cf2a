// Package recordsv1 is the format of the records in the cluster store. Use
// package records to read and write them.
package recordsv1

//go:generate sh -c "protoc -I . --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative records.proto"
