// Package membershipv1 is the generated code of the service by which nodes join
// and stay in a cluster (nodes.proto), with its Connect handlers and
// clients in membershipv1connect. The file is not called membership.proto,
// because etcd registers one of that name in every program.
package membershipv1

//go:generate protoc -I . --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative,simple nodes.proto
