// Package apitest has what tests of the API's two sides need: Fake, an
// api.Service in memory with the real rules (idempotence, use, names, sizes),
// and Run, the conformance suite that every api.Service passes: the fake, the
// agent, and either of them through server and client.
//
// The fake has one mutex and no goroutines. Its content is a number per 64 KiB
// extent, enough to compare and restore snapshots.
package apitest
