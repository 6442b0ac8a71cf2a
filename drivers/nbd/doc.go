// Package nbd is the NBD wire protocol: constants, codecs of the transmission
// phase, and the two negotiations of fixed newstyle. It opens no sockets and
// starts no goroutines; drivers/nbd/nbdserver and drivers/nbd/nbdclient do.
//
// The specification is doc/proto.md of NetworkBlockDevice/nbd; names in
// comments (NBD_CMD_READ) are its names.
//
// # Supported
//
//	options     EXPORT_NAME ABORT LIST INFO GO STARTTLS STRUCTURED_REPLY
//	            LIST_META_CONTEXT SET_META_CONTEXT EXTENDED_HEADERS
//	commands    READ WRITE FLUSH TRIM WRITE_ZEROES BLOCK_STATUS CACHE DISC
//	flags       FUA DF NO_HOLE FAST_ZERO REQ_ONE PAYLOAD_LEN
//	replies     simple, structured, extended
//	contexts    base:allocation and what an export adds (moraine:delta/SNAP)
//
// Not supported: oldstyle, PEEK_EXPORT, RESIZE (withdrawn experiments),
// payloads on BLOCK_STATUS (optional, NBD_FLAG_BLOCK_STAT_PAYLOAD is not
// offered).
//
// # Invariants
//
//  1. No length from the wire is used for an allocation before it was compared
//     with a limit of limits.go.
//  2. The negotiations read exactly the bytes that belong to them: nothing is
//     buffered beyond, so that a descriptor can be handed on afterwards and
//     plaintext behind STARTTLS is never taken for TLS.
//  3. STARTTLS forgets everything negotiated before it.
//  4. A decoder returns an error for each input it does not accept; it never
//     panics (fuzzed).
//
// # Layout of the transmission phase (big endian)
//
//	compact request   25609513 flags16 type16 cookie64 offset64 length32        28 bytes
//	extended request  21e41c71 flags16 type16 cookie64 offset64 length64        32
//	simple reply      67446698 error32 cookie64                                 16
//	structured chunk  668e33ef flags16 type16 cookie64 length32                 20
//	extended chunk    6e8a278c flags16 type16 cookie64 offset64 length64        32
package nbd
