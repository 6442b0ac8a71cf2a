// Package backendrpc carries the backend contract over gRPC: Server presents a
// backends.Backend as a gRPC service, Client is a backends.Backend that calls
// one. It knows nothing of processes; plugins/sdk and plugins/host add those.
//
// The peer is not trusted to be correct. The server checks every request
// before the backend sees it; the client checks every answer (IDs, states,
// sizes, lengths), and one that breaks the contract is ErrInternal naming what
// is wrong, never a half-valid value.
//
// Optional calls: a server answers UNIMPLEMENTED for what its backend lacks and
// tells in Info what it has; the client implements every interface, and Info's
// Capabilities decide (backends.Complete is done by plugins/host).
package backendrpc
