// Package apiv1 is the generated code of the public API, version 1
// (moraine.proto), with its Connect handlers and clients in apiv1connect.
package apiv1
